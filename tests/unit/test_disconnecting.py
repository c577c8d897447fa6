"""`disconnect()` and `revoke()` check their arguments, and take effect after the commit. A logout disconnects, too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.auth.signals import user_logged_out
from django.db import transaction
from django.test import Client, RequestFactory
from django.test.utils import isolate_apps
from django.utils.functional import SimpleLazyObject

from reliable_cable import (
    BroadcastError,
    CableConsumer,
    Channel,
    InvalidIdentifier,
    InvalidOption,
    InvalidStreamName,
    StoreError,
    adisconnect,
    arevoke,
    disconnect,
    revoke,
)
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.identity import identifier_names
from reliable_cable.stores.engine import get_engine
from tests.stores.conftest import wait_until
from tests.unit.wire import registered

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("memory_engine")]


@pytest.fixture
def user() -> Any:
    return get_user_model().objects.create_user("ann", password="secret")


def control_messages() -> list[Any]:
    """Return the revocations that have been sent, without their times."""
    page = get_engine().streams.read(CONTROL_STREAM, after=0, limit=100)
    messages = [message for entry in page.entries if "revoke" in (message := json.loads(entry.data))]
    for message in messages:
        assert message.pop("at") > 0
    return messages


def revoked(identity: dict[str, str]) -> bool:
    """Return whether the session store has a revocation of an identity."""
    return get_engine().sessions.revoked([identity]) != [0]


class TestDisconnect:
    def test_revokes_the_sessions_and_sends_a_control_message(self, user: Any) -> None:
        disconnect(user=user)
        name = f"auth.user:{user.pk}"
        assert control_messages() == [{"revoke": {"user": name}, "reconnect": False}]
        assert revoked({"user": name})

    async def test_its_async_twin_does_the_same(self) -> None:
        await adisconnect(user="ann", reconnect=True)
        assert control_messages() == [{"revoke": {"user": "str:ann"}, "reconnect": True}]

    def test_accepts_every_kind_of_value_that_connect_can_set(self, user: Any) -> None:
        disconnect(user=SimpleLazyObject(lambda: user))
        disconnect(user="ann")
        assert [message["revoke"]["user"] for message in control_messages()] == [f"auth.user:{user.pk}", "str:ann"]

    @isolate_apps("tests")
    def test_an_instance_of_a_proxy_model_names_the_same_user(self, user: Any) -> None:
        class Staff(type(user)):  # type: ignore[misc]
            class Meta:
                app_label = "tests"
                proxy = True

        disconnect(user=Staff.objects.get(pk=user.pk))
        assert control_messages() == [{"revoke": {"user": f"auth.user:{user.pk}"}, "reconnect": False}]

    @pytest.mark.parametrize(
        "value",
        [
            *(1, True, uuid4(), "", object(), User, User.objects.all()),
            # Several users at once, or a function that was not called.
            *([User(pk=1)], (User(pk=1),), {"user"}, frozenset(), {"user": 1}, iter(["user"]), uuid4, str.upper),
        ],
    )
    def test_rejects_values_that_no_connection_has(self, value: Any) -> None:
        with pytest.raises(InvalidIdentifier, match=r"disconnect\(user="):
            disconnect(user=value)
        assert control_messages() == []

    async def test_rejects_a_user_that_was_not_awaited(self) -> None:
        async def auser() -> User:
            return User(pk=1)

        user = auser()
        with pytest.raises(InvalidIdentifier, match="await it"):
            await adisconnect(user=user)
        await user
        assert control_messages() == []

    def test_requires_an_identifier(self) -> None:
        with pytest.raises(InvalidIdentifier, match=r"at least one identifier: disconnect\(user=user\)"):
            disconnect(reconnect=True)
        assert control_messages() == []

    def test_accepts_only_the_identifiers_of_consumers(self) -> None:
        class Tenant(CableConsumer):
            identified_by = ("user", "tenant")

        try:
            disconnect(tenant=1, user="ann")
            with pytest.raises(InvalidIdentifier, match=r"no connection is identified by 'planet'.* 'tenant', 'user'"):
                disconnect(tenant=1, planet=2)
            assert len(control_messages()) == 1
        finally:
            identifier_names.discard("tenant")

    def test_imports_the_consumers_if_they_are_not_imported(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A task worker, for example, has not imported the consumers.
        module = ModuleType("some_asgi")

        def define() -> None:
            type("Consumer", (CableConsumer,), {"identified_by": ("device",)})

        monkeypatch.setitem(sys.modules, "some_asgi", module)
        settings.ASGI_APPLICATION = "some_asgi.application"
        with mock.patch("reliable_cable.disconnecting.import_module", side_effect=lambda name: define()) as imported:
            disconnect(device=1)
        imported.assert_called_once_with("some_asgi")
        identifier_names.discard("device")

    def test_an_unknown_identifier_is_reported_even_if_the_application_cannot_be_imported(self, settings: Any) -> None:
        settings.ASGI_APPLICATION = "no_such_module.application"
        with pytest.raises(InvalidIdentifier):
            disconnect(nothing=1)

    @pytest.mark.parametrize("user", [None, AnonymousUser(), SimpleLazyObject(AnonymousUser)])
    def test_rejects_an_anonymous_user(self, user: Any) -> None:
        # Such a call would disconnect all visitors who are not logged in, which is hardly intended.
        with pytest.raises(InvalidIdentifier, match="nobody"):
            disconnect(user=user)

    def test_rejects_a_user_who_is_not_saved(self) -> None:
        with pytest.raises(InvalidIdentifier, match="not saved"):
            disconnect(user=get_user_model()(username="new"))

    def test_raises_if_a_store_cannot_be_reached(self) -> None:
        with mock.patch.object(get_engine().sessions, "revoke", side_effect=StoreError("down")):
            with pytest.raises(StoreError):
                disconnect(user="ann")
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastError("down")):
            with pytest.raises(BroadcastError):
                disconnect(user="ann")


class Room(Channel, abstract=True):
    pass


class Base(Channel, abstract=True):
    pass


@pytest.fixture(autouse=True)
def _room() -> Iterator[None]:
    with registered(Room=Room):
        yield


class TestRevoke:
    def test_a_channel_or_a_stream_is_stored_with_the_identifiers(self) -> None:
        with transaction.atomic():
            revoke(user="ann", channel=Room, reason="left")
            revoke(stream="a")
            assert control_messages() == []
        first, second = control_messages()
        assert (first["revoke"], first["subscriptions"]) == ({"user": "str:ann"}, {"@channel": "Room"})
        assert (second["revoke"], second["subscriptions"]) == ({}, {"@stream": "a"})
        assert (first["reason"], second["reason"]) == ("left", "revoked")
        ann, bob = {"user": "str:ann", "@channel": "Room"}, {"user": "str:bob", "@stream": "a"}
        assert revoked(ann)
        assert revoked(bob)
        assert not revoked({"user": "str:bob", "@channel": "Room"})

    async def test_the_async_twin_does_the_same(self) -> None:
        await arevoke(user="ann", stream="a")
        assert [message["subscriptions"] for message in control_messages()] == [{"@stream": "a"}]

    def test_servers_of_the_previous_release_reconnect_the_clients(self) -> None:
        # Those servers know only the keys `revoke` and `reconnect`, so they handle the message as a disconnect.
        revoke(user="ann", stream="a")
        (message,) = control_messages()
        assert message["revoke"] == {"user": "str:ann"}
        assert message["reconnect"] is True

    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({}, InvalidOption, "either a channel or a stream"),
            ({"user": "ann"}, InvalidOption, "either a channel or a stream"),
            ({"channel": Room, "stream": "a"}, InvalidOption, "either a channel or a stream"),
            ({"channel": "Room"}, InvalidOption, "must be a channel class"),
            ({"channel": Base}, InvalidOption, "no client can subscribe to this class"),
            ({"channel": Channel}, InvalidOption, "no client can subscribe to this class"),
            ({"channel": get_user_model()}, InvalidOption, "must be a channel class"),
            ({"stream": ""}, InvalidStreamName, "0 characters"),
            ({"stream": "a", "user": None}, InvalidIdentifier, "identifies nobody"),
            ({"stream": "a", "user": 1}, InvalidIdentifier, r"revoke\(user=…\) .* give the user object"),
            ({"stream": "a", "nothing": 1}, InvalidIdentifier, "no connection is identified by 'nothing'"),
            ({"stream": "a", "reason": None}, InvalidOption, "needs a reason, which must be a non-empty string"),
            ({"stream": "a", "reason": "\ud800"}, InvalidOption, "needs a reason, which must be a non-empty string"),
            ({"stream": "a", "using": "nowhere"}, InvalidOption, "nowhere"),
        ],
    )
    def test_wrong_arguments_raise_at_once(self, options: dict[str, Any], error: type[Exception], text: str) -> None:
        with transaction.atomic(), pytest.raises(error, match=text):
            revoke(**options)
        assert control_messages() == []

    def test_a_rollback_cancels_the_call(self) -> None:
        with transaction.atomic():
            revoke(stream="a")
            transaction.set_rollback(True)
        assert control_messages() == []

    def test_a_call_that_fails_after_the_commit_is_retried(self, caplog: pytest.LogCaptureFixture) -> None:
        sessions = get_engine().sessions
        with mock.patch.object(sessions, "revoke", side_effect=[StoreError("Redis is down"), 1_000_000.0]):
            with transaction.atomic():
                revoke(stream="a")
            wait_until(control_messages)
        assert "The subscriptions of {'@stream': 'a'} are not closed yet; trying again: Redis is down" in caplog.text


class TestTransactions:
    def test_the_disconnect_happens_after_the_commit(self) -> None:
        with transaction.atomic():
            disconnect(user="ann")
            assert control_messages() == []
            assert not revoked({"user": "str:ann"})
        assert len(control_messages()) == 1
        assert revoked({"user": "str:ann"})

    def test_a_rollback_cancels_the_disconnect(self) -> None:
        with transaction.atomic():
            disconnect(user="ann")
            transaction.set_rollback(True)
        assert control_messages() == []

    def test_invalid_arguments_raise_at_once(self) -> None:
        with transaction.atomic(), pytest.raises(InvalidIdentifier):
            disconnect(user=None)

    def test_an_outage_of_the_store_does_not_break_the_transaction_of_a_logout(
        self, user: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with mock.patch.object(get_engine().sessions, "revoke", side_effect=StoreError("Redis is down")):
            with transaction.atomic():
                user_logged_out.send(type(user), request=RequestFactory().get("/"), user=user)
        assert "Redis is down" in caplog.text


EXIT_DURING_OUTAGE = """
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="tests",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "channels", "reliable_cable"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    RELIABLE_CABLE={"REDIS_URL": "redis://127.0.0.1:1/0"},
)
django.setup()

from django.db import transaction
from reliable_cable import CableConsumer, disconnect, disconnecting

disconnecting._pending._exit_timeout = 0.2
with transaction.atomic():
    disconnect(user="ann")
print("committed")
"""


def test_a_disconnect_that_is_still_pending_when_the_process_exits_is_logged() -> None:
    result = subprocess.run(
        [sys.executable, "-c", EXIT_DURING_OUTAGE], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "committed\n"
    first, last = result.stderr.splitlines()
    assert first.startswith("The connections of {'user': 'str:ann'} are not closed yet; trying again: Redis cannot be")
    assert last == "The connections of {'user': 'str:ann'} were not closed, because the process exits."


class TestLogout:
    def test_closes_the_connections_of_the_user_and_allows_them_to_reconnect(self, user: Any) -> None:
        browser = Client()
        browser.force_login(user)
        browser.logout()
        assert control_messages() == [{"revoke": {"user": f"auth.user:{user.pk}"}, "reconnect": True}]

    async def test_closes_connections_in_async_code_too(self, user: Any) -> None:
        await user_logged_out.asend(type(user), request=RequestFactory().get("/"), user=user)
        assert len(control_messages()) == 1

    def test_a_logout_without_a_user_does_nothing(self) -> None:
        user_logged_out.send(type(None), request=RequestFactory().get("/"), user=None)
        assert control_messages() == []

    def test_a_logout_succeeds_while_the_store_is_down(self, user: Any, caplog: pytest.LogCaptureFixture) -> None:
        browser = Client()
        browser.force_login(user)
        with mock.patch.object(get_engine().streams, "append", side_effect=BroadcastError("Redis is down")):
            browser.logout()
        assert "Redis is down" in caplog.text
        # The disconnect is retried.
        wait_until(lambda: len(control_messages()) == 1)

    def test_the_receiver_of_the_signal_can_be_disconnected(self, user: Any) -> None:
        from reliable_cable.disconnecting import disconnect_logged_out

        assert user_logged_out.disconnect(dispatch_uid="reliable_cable.logout")
        try:
            user_logged_out.send(type(user), request=RequestFactory().get("/"), user=user)
            assert control_messages() == []
        finally:
            user_logged_out.connect(disconnect_logged_out, dispatch_uid="reliable_cable.logout")
