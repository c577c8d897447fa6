"""Positions in streams without a message: `forget()` may have deleted messages that came after them.

A client with such a position is sent everything that came after it, or a notice of a loss.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from reliable_cable import CableConsumer, PagePosition, abroadcast, aforget, aposition
from reliable_cable.consumer import close_hub
from reliable_cable.protocol.positions import StreamPosition, beginning_of, is_beginning
from reliable_cable.protocol.recovery import recoverable
from reliable_cable.stores.engine import Engine, get_engine
from reliable_cable.stores.streams.base import LONG_AGO, NOWHERE, Message, StreamStore
from reliable_cable.testing.client_socket import ClientSocket, is_message
from tests.stores.conftest import EVERY_STORE, MODEL_STORES, Clock, MakeStore

every_store = pytest.mark.parametrize("alias", EVERY_STORE, indirect=True)


def broadcast(store: StreamStore, data: str = "1") -> StreamPosition:
    (position,) = store.append([("a", Message(data))])
    return position


def reaches(store: StreamStore, position: StreamPosition) -> list[str] | None:
    """Return the messages that a client with a position is sent; None if it is sent a notice of a loss."""
    page = store.read("a", after=position.offset, limit=100)
    if is_beginning(position):
        position = NOWHERE if position == beginning_of(page.lineage) else StreamPosition("?", 0)
    return [entry.data for entry in page.entries] if recoverable(position, page) else None


@every_store
class TestStores:
    def test_a_position_before_the_first_message_ends_with_its_epoch(self, store: StreamStore) -> None:
        empty = store.position("a")
        assert reaches(store, empty) == []
        broadcast(store)
        assert reaches(store, empty) == ["1"]
        store.forget("a")
        assert reaches(store, empty) is None
        broadcast(store, "2")
        assert reaches(store, empty) is None
        store.forget("a")
        assert reaches(store, empty) is None

    def test_a_position_after_forgetting_is_that_of_the_new_epoch(self, store: StreamStore) -> None:
        before = broadcast(store)
        store.forget("a")
        empty = store.position("a")
        assert (reaches(store, before), reaches(store, empty)) == (None, [])
        assert broadcast(store, "2") == StreamPosition(empty.epoch, 1)
        assert reaches(store, empty) == ["2"]

    def test_a_stream_that_never_had_a_message_is_not_changed(self, store: StreamStore) -> None:
        empty = store.position("a")
        store.forget("a")
        assert store.position("a") == empty
        broadcast(store, "2")
        assert reaches(store, empty) == ["2"]

    def test_only_the_given_epoch_is_forgotten(self, store: StreamStore) -> None:
        former = broadcast(store)
        store.forget("a", epoch=former.epoch)
        later = broadcast(store, "2")
        store.forget("a", epoch=former.epoch)
        assert store.position("a") == later

    @pytest.mark.parametrize("given", [False, True])
    def test_an_epoch_ends_even_without_a_message(self, store: StreamStore, given: bool) -> None:
        """A stream without a message may have lost all of its messages, for example when a backup was restored."""
        broadcast(store)
        store.forget("a")
        empty = store.position("a")
        store.forget("a", epoch=empty.epoch if given else "")
        assert store.position("a").epoch not in ("", empty.epoch)
        assert reaches(store, empty) is None

    def test_a_new_epoch_for_all_streams_is_one_for_those_without_a_message(self, store: StreamStore) -> None:
        empty = store.position("a")
        broadcast(store)
        named = beginning_of(store.read("a", after=0, limit=0).lineage) if empty == NOWHERE else empty
        store.forget_all()
        later = store.position("a")
        assert reaches(store, named) is None
        broadcast(store, "2")
        assert reaches(store, named) is None
        if later != NOWHERE:
            assert reaches(store, later) == ["2"]

    def test_messages_since_a_time_before_are_missing(self, store: StreamStore, clock: Clock) -> None:
        start = clock.now
        clock.advance(10)
        broadcast(store)
        clock.advance(10)
        store.forget("a")
        for _ in range(2):
            assert store.offset_since("a", start) is None
            assert store.offset_since("a", clock.now - 5) == 0, "nothing was sent after this time"
            assert store.offset_since("a", clock.now) == 0
            assert store.offset_since("a", LONG_AGO) == 0, "all messages of the epoch"
            clock.advance(10)
            broadcast(store, "2")
            assert store.offset_since("a", start) is None
            assert store.offset_since("a", clock.now - 15) == 0
            assert store.offset_since("a", LONG_AGO) == 0
            clock.advance(10)
            start = clock.now - 10
            store.forget("a")

    def test_a_forgotten_stream_is_pruned_when_it_is_idle(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_ttl=60, history_meta_ttl=3600, sessions_ttl=60)
        broadcast(store)
        clock.advance(3500)
        store.forget("a")
        forgotten = store.position("a")
        clock.advance(3500)
        store.prune()
        assert store.position("a") == forgotten
        clock.advance(200)
        store.prune()
        assert store.position("a") == NOWHERE


@pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
def test_a_read_that_has_begun_finds_no_entry_of_the_new_epoch(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broadcast(store)
    entries_after = type(store._reader)._entries_after

    def forget_between(reader: Any, *args: Any) -> Any:
        monkeypatch.undo()
        store.forget("a")
        broadcast(store, "2")
        return entries_after(reader, *args)

    monkeypatch.setattr(type(store._reader), "_entries_after", forget_between)
    page = store.read("a", after=0, limit=10)
    assert [entry.data for entry in page.entries] == ["2"]
    assert page.epoch == store.position("a").epoch


class Client:
    """A client of the channel of public streams, with the extended protocol."""

    def __init__(self) -> None:
        self.socket = ClientSocket()
        self.sid = ""

    async def connect(self, query: str = "") -> None:
        scope = {
            "type": "websocket",
            "path": "/cable",
            "headers": [],
            "query_string": query.encode(),
            "subprotocols": ["actioncable-v1-ext-json"],
        }
        welcome = await self.socket.open(CableConsumer.as_asgi(), scope)
        assert welcome is not None
        self.sid = welcome["sid"]

    async def subscribe(self, at: PagePosition | None = None) -> None:
        params = {} if at is None else {"after": str(at)}
        self.identifier = json.dumps({"channel": "$pubsub", "stream_name": "a", **params})
        await self.socket.send("subscribe", identifier=self.identifier)

    async def received(self) -> list[Any]:
        """Return the messages, and the notices of a loss."""
        await self.socket.settle()
        frames = self.socket.take_all(lambda frame: is_message(frame) or frame.get("type") == "reject_history")
        return [frame["message"] if "message" in frame else "lost" for frame in frames]


@every_store
class TestClients:
    @pytest.fixture
    async def client(self, engine: Engine, settings: Any) -> AsyncIterator[Client]:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "PUBLIC_STREAMS": True, "POLL_INTERVAL": 0.05}
        client = Client()
        yield client
        await client.socket.disconnect()
        store = get_engine().streams
        await close_hub()
        store.close()

    @pytest.mark.parametrize("later", [[], ["2"]])
    async def test_a_page_of_an_empty_stream_is_told_of_the_loss(self, client: Client, later: list[str]) -> None:
        at = await aposition("a")
        await abroadcast("a", "1")
        await aforget("a")
        for data in later:
            await abroadcast("a", data)
        await client.connect()
        await client.subscribe(at)
        assert await client.received() == ["lost"]
        await abroadcast("a", "3")
        await client.socket.take(lambda frame: frame.get("message") == "3", "message")

    async def test_a_page_that_missed_nothing_is_not(self, client: Client) -> None:
        at = await aposition("a")
        await aforget("a")
        await abroadcast("a", "1")
        await client.connect()
        await client.subscribe(at)
        assert await client.received() == ["1"]

    async def test_a_page_of_a_forgotten_stream_gets_everything_after_it(self, client: Client) -> None:
        await abroadcast("a", "1")
        await aforget("a")
        at = await aposition("a")
        await client.connect()
        await client.subscribe(at)
        assert await client.received() == []
        await client.socket.disconnect()
        await abroadcast("a", "2")
        await client.connect()
        await client.subscribe(at)
        assert await client.received() == ["2"]

    async def test_a_client_that_returns_is_told(self, client: Client) -> None:
        await client.connect()
        await client.subscribe()
        assert await client.received() == []
        await client.socket.disconnect(1006)
        await abroadcast("a", "1")
        await aforget("a")
        await client.connect(f"sid={client.sid}")
        await client.socket.send("history", identifier=client.identifier, history={"since": 0})
        assert await client.received() == ["lost"]

    async def test_a_client_that_is_connected_is_told_once(self, client: Client) -> None:
        await client.connect()
        await client.subscribe()
        assert await client.received() == []
        await abroadcast("a", "1")
        await client.socket.take(lambda frame: frame.get("message") == "1", "message")
        await aforget("a")
        await client.socket.take(lambda frame: frame.get("type") == "reject_history", "notice")
        await abroadcast("a", "2")
        await client.socket.take(lambda frame: frame.get("message") == "2", "message")
        assert await client.received() == []
