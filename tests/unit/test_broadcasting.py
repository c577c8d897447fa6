"""Broadcasts are validated, wait for the commit of a transaction, and can exclude a connection."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings

from reliable_cable.broadcasting import (
    HistoryEntry,
    abroadcast,
    abroadcast_batch,
    aforget,
    ahistory,
    aposition,
    broadcast,
    broadcast_batch,
    forget,
    history,
    position,
)
from reliable_cable.exceptions import BroadcastError, InvalidOption, InvalidPayload, InvalidStreamName, PayloadTooLarge
from reliable_cable.middleware import SocketIdMiddleware
from reliable_cable.models import StreamEntry, TransientEntry
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.engine import get_engine
from reliable_cable.validation import check_stream_name
from tests.protocol.test_payloads import FALSY

pytestmark = pytest.mark.django_db(transaction=True)

STREAMS = {"cursor:*": {"history_size": 0}}


@pytest.fixture(params=["memory", "database"], autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    values = {"ENGINE": request.param, "STREAMS": STREAMS, "MAX_BROADCAST_SIZE": 1024}
    with override_settings(RELIABLE_CABLE=values):
        yield request.param


def data(stream: str = "a") -> list[Any]:
    return [entry.data for entry in history(stream)]


def excluded(stream: str = "a") -> list[str]:
    return [entry.exclude for entry in get_engine().streams.read(stream, after=0, limit=100).entries]


class TestBroadcasting:
    def test_a_broadcast_is_kept_and_returns_its_position(self) -> None:
        first = broadcast("a", {"text": "hi"})
        assert first == position("a")
        assert first.offset == 1
        assert history("a") == [HistoryEntry(first, {"text": "hi"})]

    def test_payloads_are_encoded_by_the_encoder_of_django(self) -> None:
        broadcast(
            "a",
            {
                "at": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
                "id": uuid.UUID(int=1),
                "price": decimal.Decimal("1.50"),
                "text": "żółw 🐢 </script>\u2028",
            },
        )
        assert data() == [
            {
                "at": "2026-01-02T03:04:05Z",
                "id": "00000000-0000-0000-0000-000000000001",
                "price": "1.50",
                "text": "żółw 🐢 </script>\u2028",
            }
        ]

    def test_history_can_be_read_in_pages(self) -> None:
        for number in range(1, 6):
            broadcast("a", number)
        assert [entry.position.offset for entry in history("a", after=1, limit=3)] == [2, 3, 4]
        assert history("nothing here") == []
        assert position("nothing here") == StreamPosition("", 0)

    def test_forget_begins_a_new_epoch(self) -> None:
        before = broadcast("a", 1)
        forget("a")
        assert data() == []
        after = broadcast("a", 2)
        assert before is not None
        assert after is not None
        assert after.offset == 1
        assert after.epoch != before.epoch

    def test_a_broadcast_with_a_repeated_idempotency_key_is_not_stored(self) -> None:
        assert broadcast("a", 1, idempotency_key="k") == broadcast("a", 2, idempotency_key="k")
        assert data() == [1]

    def test_a_batch_is_stored_in_order(self) -> None:
        positions = broadcast_batch([("a", 1), ("b", 2), ("cursor:1", 3), ("a", 4)])
        assert [p and p.offset for p in positions] == [1, 1, None, 2]
        assert data("a") == [1, 4]
        assert data("b") == [2]
        assert broadcast_batch([]) == []

    def test_nothing_of_a_batch_with_an_invalid_item_is_stored(self) -> None:
        with pytest.raises(InvalidPayload):
            broadcast_batch([("a", 1), ("a", None)])
        assert data() == []

    def test_an_item_of_a_batch_can_have_its_own_options(self) -> None:
        positions = broadcast_batch(
            [
                ("a", 1),
                ("a", 2, {"transient": True}),
                ("a", 3, {"exclude_socket": "other", "idempotency_key": "k"}),
                ("a", 4, {"exclude_socket": None, "idempotency_key": None}),
                ("a", 5, {"idempotency_key": "k"}),
            ],
            exclude_socket="sid",
        )
        assert [p and p.offset for p in positions] == [1, None, 2, 3, 2]
        assert data() == [1, 3, 4]
        assert excluded() == ["sid", "other", ""]
        assert broadcast_batch([("a", 6, {"transient": False})], transient=True) == [position("a")]
        with pytest.raises(InvalidOption, match="unknown option 'immediate'; allowed: exclude_socket, idempotency_key"):
            broadcast_batch([("a", 7, {"immediate": True})])  # type: ignore[typeddict-unknown-key]

    @pytest.mark.parametrize(("stream", "options"), [("a", {"transient": True}), ("cursor:1", {})])
    def test_transient_messages_are_not_kept(self, stream: str, options: dict[str, Any]) -> None:
        store = get_engine().streams
        with mock.patch.object(store, "publish_transient", wraps=store.publish_transient) as publish:
            assert broadcast(stream, {"x": 1}, exclude_socket="sid", **options) is None
        assert [(call.args[0], call.args[1].data, call.args[1].exclude) for call in publish.call_args_list] == [
            (stream, '{"x":1}', "sid")
        ]
        assert position(stream) == StreamPosition("", 0)


class TestRefusals:
    @pytest.mark.parametrize("text", FALSY)
    def test_payloads_that_are_falsy_in_javascript_are_refused(self, text: str) -> None:
        with pytest.raises(InvalidPayload, match=r"payload for 'a' is .* falsy in JavaScript.*Wrap it in a dict"):
            broadcast("a", json.loads(text))
        assert data() == []

    @pytest.mark.parametrize("payload", [[], {}, True, 1, "0", [None]])
    def test_payloads_that_are_falsy_only_in_python_are_accepted(self, payload: Any) -> None:
        broadcast("a", payload)
        assert data() == [payload]

    @pytest.mark.parametrize("payload", [object(), {"x": {1, 2}}, float("nan"), [float("inf")], "\ud800", {(1, 2): 3}])
    def test_payloads_that_json_cannot_encode_are_refused(self, payload: Any) -> None:
        with pytest.raises(InvalidPayload, match="payload for 'a' cannot be encoded"):
            broadcast("a", payload)

    def test_a_payload_that_contains_itself_is_refused(self) -> None:
        circle: list[Any] = []
        circle.append(circle)
        with pytest.raises(InvalidPayload, match="Circular"):
            broadcast("a", circle)

    def test_payloads_may_have_64_levels(self) -> None:
        broadcast("a", json.loads("[" * 64 + "]" * 64))
        for levels in (65, 500):
            with pytest.raises(InvalidPayload, match=r"payload for 'a' cannot .* more than 64 levels"):
                broadcast("a", json.loads("[" * levels + "]" * levels))
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        with pytest.raises(InvalidPayload):
            broadcast("a", deep)

    def test_payloads_with_too_many_bytes_are_refused(self) -> None:
        broadcast("a", "ż" * 511)
        with pytest.raises(PayloadTooLarge, match=r"has 1026 bytes; .*MAX_BROADCAST_SIZE.* allows 1024"):
            broadcast("a", "ż" * 512)

    @pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "a\x00", "a\x7f", "\ud800", None, 5, b"a"])
    def test_invalid_stream_names_are_refused(self, name: Any) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: check_stream_name(name),
            lambda: broadcast(name, 1),
            lambda: broadcast_batch([("a", 1), (name, 1)]),
            lambda: position(name),
            lambda: history(name),
            lambda: forget(name),
        ]
        for call in calls:
            with pytest.raises(InvalidStreamName, match="stream"):
                call()
        with pytest.raises(BroadcastError, match="stream"):
            broadcast(name, 1)

    @pytest.mark.parametrize("name", ["a", "x" * 255, "chat/1 {ü} 🐢", "a\u00a0b"])
    def test_valid_stream_names_are_accepted(self, name: str) -> None:
        assert check_stream_name(name) == name
        broadcast(name, 1)
        assert data(name) == [1]

    @pytest.mark.parametrize("key", ["", "x" * 256, "a\x00", 5])
    def test_invalid_idempotency_keys_are_refused(self, key: Any) -> None:
        with pytest.raises(InvalidOption, match=r"idempotency_key is .*1 to 255"):
            broadcast("a", 1, idempotency_key=key)

    @pytest.mark.parametrize(("stream", "options"), [("a", {"transient": True}), ("cursor:1", {})])
    def test_an_idempotency_key_of_a_transient_message_is_refused(self, stream: str, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidOption, match="idempotency_key"):
            broadcast(stream, 1, idempotency_key="k", **options)


class TestExclusion:
    def request(self, call: Any, socket: str | None = "sid") -> None:
        headers = {} if socket is None else {"X-Socket-ID": socket}

        def view(request: HttpRequest) -> HttpResponse:
            call(request)
            return HttpResponse()

        SocketIdMiddleware(view)(RequestFactory().get("/", headers=headers))

    def test_exclude_socket_excludes_one_socket(self) -> None:
        broadcast("a", 1, exclude_socket="sid")
        broadcast_batch([("a", 2)], exclude_socket="sid")
        assert excluded() == ["sid", "sid"]

    def test_to_others_excludes_the_socket_of_the_current_request(self) -> None:
        self.request(lambda request: broadcast("a", 1, to_others=True))
        self.request(lambda request: broadcast("a", 2))
        assert excluded() == ["sid", ""]

    def test_to_others_without_a_socket_excludes_none(self) -> None:
        broadcast("a", 1, to_others=True)
        self.request(lambda request: broadcast("a", 1, to_others=True), socket=None)
        assert excluded() == ["", ""]

    def test_an_invalid_session_id_excludes_no_socket(self) -> None:
        for socket in ("x" * 65, "a\x00b", "ü"):
            broadcast("a", 1, exclude_socket=socket)
            self.request(lambda request: broadcast("a", 2, to_others=True), socket)
        assert excluded() == [""] * 6

    def test_to_others_and_exclude_socket_cannot_be_combined(self) -> None:
        with pytest.raises(InvalidOption, match="not both"):
            broadcast("a", 1, to_others=True, exclude_socket="sid")
        with pytest.raises(InvalidOption, match="exclude_socket is 5"):
            broadcast("a", 1, exclude_socket=5)  # type: ignore[arg-type]


class TestTransactions:
    def test_a_broadcast_waits_for_the_commit(self) -> None:
        with transaction.atomic():
            assert broadcast("a", 1) is None
            assert broadcast_batch([("a", 2), ("a", 3)]) == [None, None]
            assert data() == []
        assert data() == [1, 2, 3]

    def test_a_rollback_cancels_the_broadcast(self) -> None:
        with transaction.atomic():
            broadcast("a", 1)
            broadcast("cursor:1", 1)
            forget("a")
            transaction.set_rollback(True)
        assert broadcast("a", 2) == StreamPosition(position("a").epoch, 1)
        assert TransientEntry.objects.count() == 0

    def test_a_delayed_broadcast_has_the_arguments_of_the_call(self) -> None:
        payload = {"text": "before"}

        def view(request: Any) -> None:
            broadcast("a", payload, to_others=True)

        with transaction.atomic():
            TestExclusion().request(view)
            payload["text"] = "after"
        assert data() == [{"text": "before"}]
        assert excluded() == ["sid"]

    def test_an_invalid_argument_raises_at_the_call(self) -> None:
        with transaction.atomic(), pytest.raises(InvalidPayload):
            broadcast("a", None)

    def test_transient_messages_and_forget_wait_for_the_commit(self) -> None:
        broadcast("a", 1)
        store = get_engine().streams
        with mock.patch.object(store, "publish_transient", wraps=store.publish_transient) as publish:
            with transaction.atomic():
                broadcast("a", 2, transient=True)
                forget("a")
                assert not publish.called
                assert data() == [1]
            assert publish.called
        assert data() == []

    def test_an_immediate_broadcast_does_not_wait_for_the_commit(self, engine: str) -> None:
        if engine == "database":
            # SQLite allows only one writer, so the call raises an error that says so. tests/stores covers PostgreSQL.
            with transaction.atomic(), pytest.raises(BroadcastError, match="immediate=True"):
                broadcast("a", 1, immediate=True)
            return
        with transaction.atomic():
            assert broadcast("a", 1, immediate=True) is not None
            transaction.set_rollback(True)
        assert data() == [1]


class TestTwins:
    async def test_async_functions_do_the_same(self) -> None:
        first = await abroadcast("a", 1)
        assert first == await aposition("a")
        assert [p and p.offset for p in await abroadcast_batch([("a", 2), ("cursor:1", 3)])] == [2, None]
        assert [entry.data for entry in await ahistory("a")] == [1, 2]
        await aforget("a")
        forgotten = await aposition("a")
        assert forgotten.offset == 0
        assert forgotten.epoch not in ("", first.epoch)
        with pytest.raises(InvalidPayload):
            await abroadcast("a", None)

    def test_async_functions_wait_for_the_transaction_around_async_to_sync(self) -> None:
        with transaction.atomic():
            assert async_to_sync(abroadcast)("a", 1) is None
            transaction.set_rollback(True)
        assert data() == []
        with transaction.atomic():
            async_to_sync(abroadcast)("a", 2)
        assert data() == [2]

    async def test_async_functions_know_the_socket_of_the_current_request(self) -> None:
        async def view(request: HttpRequest) -> HttpResponse:
            await abroadcast("a", 1, to_others=True)
            return HttpResponse()

        response: Any = SocketIdMiddleware(view)(RequestFactory().get("/", headers={"X-Socket-ID": "sid"}))
        await response
        page = await get_engine().streams.aread("a", after=0, limit=1)
        assert [entry.exclude for entry in page.entries] == ["sid"]


def test_only_the_database_engine_uses_the_tables(engine: str) -> None:
    broadcast("a", {"x": 1})
    assert StreamEntry.objects.count() == (1 if engine == "database" else 0)
