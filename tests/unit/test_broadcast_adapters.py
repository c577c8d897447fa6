"""`BROADCAST_ADAPTER`: messages to anycable-go, refused calls, and the checks of the settings."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import modify_settings, override_settings

from reliable_cable import (
    BroadcastUncertain,
    InvalidOption,
    NotSupported,
    PayloadTooLarge,
    ahistory,
    aposition,
    broadcast,
    broadcast_batch,
    cable_token,
    checks,
    disconnect,
    forget,
    history,
    position,
    presence_for,
    revoke,
)
from reliable_cable.auth.tokens import import_jwt
from reliable_cable.conf import ANYCABLE, CONTROL_STREAM, read_settings
from reliable_cable.stores.adapters.base import Adapter, encode_broadcast, join
from reliable_cable.stores.engine import get_engine
from reliable_cable.testing import isolated_cable
from tests.unit.test_checks import configured, ids

SECRET = "a secret of at least thirty-two bytes"


class Recorder(Adapter):
    """An adapter that records messages instead of sending them."""

    place = "a list"

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def publish(self, messages: Sequence[str]) -> None:
        self.sent += [json.loads(text) for text in join(messages)]

    async def apublish(self, messages: Sequence[str]) -> None:
        self.publish(messages)


@pytest.fixture
def sent() -> Iterator[list[Any]]:
    """The list of the messages that the project sends to anycable-go."""
    recorder = Recorder()
    settings = {"BROADCAST_ADAPTER": "http", "SECRET": SECRET, "STREAMS": {"cursor:*": {"history_size": 0}}}
    with override_settings(RELIABLE_CABLE=settings), mock.patch.object(get_engine().streams, "adapter", recorder):
        yield recorder.sent


class TestSettings:
    @pytest.mark.parametrize("adapter", ["redis", "redisx"])
    def test_an_adapter_for_redis_requires_its_url(self, adapter: str) -> None:
        settings = read_settings({"BROADCAST_ADAPTER": adapter, "REDIS_URL": "redis://localhost"})
        assert settings.engine == ANYCABLE
        with pytest.raises(ImproperlyConfigured, match=r"'BROADCAST_ADAPTER'.*REDIS_URL"):
            read_settings({"BROADCAST_ADAPTER": adapter})

    def test_an_adapter_replaces_the_engine(self) -> None:
        assert read_settings({"BROADCAST_ADAPTER": "http", "REDIS_URL": "redis://localhost"}).engine == ANYCABLE
        with pytest.raises(ImproperlyConfigured, match=r"'ENGINE'.*'memory'; it must be omitted"):
            read_settings({"BROADCAST_ADAPTER": "http", "ENGINE": "memory"})

    def test_tests_of_the_project_need_no_adapter(self) -> None:
        with override_settings(RELIABLE_CABLE={"BROADCAST_ADAPTER": "http"}), isolated_cable():
            assert broadcast("chat", 1) is not None


@pytest.mark.django_db
class TestFormat:
    def test_a_broadcast_has_the_payload_as_text(self, sent: list[Any]) -> None:
        broadcast("chat", {"text": "ü"}, immediate=True)
        assert sent == [{"stream": "chat", "data": '{"text":"ü"}'}]

    def test_options_are_metadata(self, sent: list[Any]) -> None:
        broadcast("chat", 1, exclude_socket="sid", immediate=True)
        broadcast("chat", 2, transient=True, immediate=True)
        broadcast("cursor:1", 3, immediate=True)
        assert [message.get("meta") for message in sent] == [
            {"exclude_socket": "sid"},
            {"transient": True},
            {"transient": True},
        ]

    def test_a_batch_is_sent_at_once_with_its_transient_messages_last(self, sent: list[Any]) -> None:
        items = [("a", 1), ("cursor:1", 2), ("b", 3), ("cursor:1", 4)]
        assert broadcast_batch(items, immediate=True) == [None] * 4
        assert [[message["data"] for message in batch] for batch in sent] == [["1", "3"], ["2", "4"]]

    @pytest.mark.django_db(transaction=True)
    def test_a_disconnect_names_all_identifiers_as_a_token_does(self, sent: list[Any]) -> None:
        user = User.objects.create(username="u")
        disconnect(user=user, reconnect=True)
        with override_settings(RELIABLE_CABLE={"SECRET": SECRET}):
            claims = import_jwt().decode(cable_token(user), SECRET, algorithms=["HS256"])
        assert sent == [{"command": "disconnect", "payload": {"identifier": claims["ext"], "reconnect": True}}]

    @pytest.mark.django_db(transaction=True)
    def test_ends_of_logins_are_not_sent(self, sent: list[Any]) -> None:
        User.objects.create(username="u").delete()
        assert sent == []


class TestJoin:
    def test_messages_become_one_array(self) -> None:
        assert list(join(["{}"])) == ["{}"]
        assert list(join(["{}", "[]"])) == ["[{},[]]"]

    @pytest.mark.parametrize("limit", range(40, 200, 7))
    def test_each_text_is_as_large_as_the_limit_allows(self, limit: int) -> None:
        messages = [encode_broadcast("s", json.dumps("ü" * number)) for number in range(6)]
        messages = [each for each in messages if len(each.encode()) <= limit]
        texts = list(join(messages, limit))
        assert all(len(text.encode()) <= limit for text in texts)
        values = [json.loads(text) for text in texts]
        flat = [each for value in values for each in (value if isinstance(value, list) else [value])]
        assert flat == [json.loads(message) for message in messages], "in their order"
        for first, second in pairwise(texts):
            following = second.removeprefix("[").split("},{")[0]
            assert len(first.encode()) + len(following.encode()) > limit - 4, "another message would not have fit"

    def test_a_message_above_the_limit_is_refused_before_anything_is_sent(self) -> None:
        with pytest.raises(PayloadTooLarge, match=r"101 bytes.*allows 100"):
            next(join(["1", "x" * 101], 100))


class TestRefusals:
    @pytest.mark.parametrize(
        ("call", "remedy"),
        [
            (lambda: position("chat"), "request history by time"),
            (lambda: history("chat"), "request history by time"),
            (lambda: presence_for("chat").total(), "For 1.6, set API_URL"),
            (lambda: forget("chat"), "--history_ttl"),
            (lambda: revoke(stream="chat"), r"disconnect\(reconnect=True\)"),
        ],
    )
    def test_what_anycable_go_cannot_answer_names_a_remedy(
        self, sent: list[Any], call: Callable[[], object], remedy: str
    ) -> None:
        with pytest.raises(NotSupported, match=remedy):
            call()
        assert sent == []

    async def test_async_code_gets_the_same_errors(self, sent: list[Any]) -> None:
        with pytest.raises(NotSupported):
            await aposition("chat")
        with pytest.raises(NotSupported):
            await ahistory("chat")
        with pytest.raises(NotSupported):
            await presence_for("chat").ainfo()

    def test_an_idempotency_key_is_refused(self, sent: list[Any]) -> None:
        with pytest.raises(InvalidOption, match="does not recognise repeated messages"):
            broadcast("chat", 1, idempotency_key="k")

    def test_health_checks_and_pruning_work(self, sent: list[Any]) -> None:
        engine = get_engine()
        assert engine.streams.position(CONTROL_STREAM).offset == 0
        assert engine.streams.prune() == engine.sessions.prune() == 0

    def test_members_and_sessions_are_those_of_anycable_go(self, sent: list[Any]) -> None:
        presence, sessions = get_engine().presence, get_engine().sessions
        calls: list[Callable[[], object]] = [
            lambda: presence.join("chat", "sid", "1"),
            lambda: presence.leave("chat", "sid"),
            lambda: presence.refresh({"sid": ["chat"]}),
            lambda: presence.left_within("chat", 1),
            lambda: presence.listen(lambda event: None),
        ]
        for call in calls:
            with pytest.raises(NotSupported):
                call()
        assert presence.expire() == []
        sessions.save({})
        sessions.delete(["sid"])
        assert sessions.load("sid", {}) is None
        assert sessions.touch(["sid"]) == {"sid"}, "no session is reported as lost"
        assert sessions.revoked([{}]) == [0.0]
        assert sent == []

    def test_clients_of_this_package_are_refused(self, sent: list[Any]) -> None:
        with pytest.raises(NotSupported, match="Connect clients to anycable-go"):
            get_engine().streams.listen(lambda event: None)


class TestChecks:
    def test_a_missing_package_is_reported(self) -> None:
        with mock.patch.dict(sys.modules, {"nats": None}), configured(BROADCAST_ADAPTER="nats"):
            (message,) = checks.check_engine()
        assert ids([message]) == ["E003"]
        assert "pip install 'reliable_cable[nats]'" in message.msg

    @pytest.mark.parametrize("option", ["tls_context", "allow_reconnect", "servers"])
    def test_an_unknown_option_of_nats_is_reported(self, option: str) -> None:
        with configured(BROADCAST_ADAPTER="nats", NATS_OPTIONS={option: True}):
            (message,) = checks.check_engine()
        assert ids([message]) == ["E003"]
        assert f"the key {option!r}; allowed: connect_timeout" in message.msg

    def test_apps_that_need_the_history_are_reported(self) -> None:
        with configured(BROADCAST_ADAPTER="http"):
            assert ids(checks.check_broadcast_adapter()) == ["E008"]
            with modify_settings(INSTALLED_APPS={"remove": "reliable_cable.runs"}):
                assert checks.check_broadcast_adapter() == []
        with configured():
            assert checks.check_broadcast_adapter() == []

    def test_a_key_that_anycable_go_does_not_have_is_reported(self) -> None:
        with configured(BROADCAST_ADAPTER="http"):
            (message,) = checks.check_unused_settings()
        assert "derived from SECRET_KEY" in message.msg
        with configured(BROADCAST_ADAPTER="http", BROADCAST_KEY="k"):
            assert checks.check_unused_settings() == []


class TestDoctor:
    def test_it_sends_a_test_message(self, sent: list[Any]) -> None:
        out = io.StringIO()
        call_command("cable_doctor", stdout=out)
        assert "streams: reliable_cable.stores.adapters.streams.AdapterStreamStore, a list" in out.getvalue()
        assert "A test message was sent." in out.getvalue()
        assert [message["data"] for message in sent] == ['{"probe":true}']

    def test_it_reports_a_server_that_is_lost(self) -> None:
        settings = {"BROADCAST_ADAPTER": "http", "HTTP_BROADCAST_URL": "http://127.0.0.1:1/_broadcast"}
        with override_settings(RELIABLE_CABLE=settings), pytest.raises(CommandError, match="cannot be reached"):
            call_command("cable_doctor", stdout=io.StringIO())


def test_uncertain_broadcasts_do_not_recommend_an_idempotency_key() -> None:
    from reliable_cable.stores.adapters.base import uncertain

    assert isinstance(uncertain("It is lost."), BroadcastUncertain)
    assert "idempotency_key" not in str(uncertain("It is lost."))
