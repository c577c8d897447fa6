"""Young entries, which a stream store keeps for followers even beyond the history size."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction

from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import advance
from reliable_cable.stores.streams import memory, model_retention
from reliable_cable.stores.streams.base import YOUNG_TIME, Advanced, Message, StreamEvent, StreamStore
from tests.stores.conftest import (
    MEMORY,
    MODEL_STORES,
    Clock,
    MakeStore,
    finish_store_threads,
    until,
)
from tests.stores.test_streams import append, kept

every_store = pytest.mark.parametrize("alias", [MEMORY, *MODEL_STORES], indirect=True)
model_stores = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)

SIZE = 3


def follow(store: StreamStore, after: int = 0, limit: int = 10_000) -> list[int]:
    """Return the offsets that a follower can read."""
    return [entry.offset for entry in store.read("a", after=after, limit=limit, following=True).entries]


def offsets(store: StreamStore) -> list[int]:
    """Return the offsets that a returning reader can read."""
    return [offset for offset, _ in kept(store)]


@every_store
class TestYoungEntries:
    def test_a_follower_can_read_entries_that_a_returning_reader_cannot(self, make_store: MakeStore) -> None:
        store = make_store(history_size=SIZE)
        append(store, *map(str, range(150)))
        page = store.read("a", after=100, limit=1000, following=True)
        assert [entry.offset for entry in page.entries] == list(range(101, 151))
        assert (page.low, page.tail) == (1, 150)
        assert follow(store, after=100, limit=2) == [101, 102]
        assert offsets(store) == [148, 149, 150]
        assert store.read("a", after=0, limit=0).low == 148

    def test_pruning_keeps_young_entries(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_size=SIZE)
        append(store, *"12345")
        clock.advance(YOUNG_TIME / 2)
        append(store, *"6789")
        store.prune()
        assert follow(store) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        clock.advance(YOUNG_TIME / 2)
        assert store.prune() == 5
        assert follow(store) == [6, 7, 8, 9]
        clock.advance(YOUNG_TIME / 2)
        assert store.prune() == 1
        assert follow(store) == offsets(store) == [7, 8, 9]

    def test_a_short_ttl_hides_young_entries_from_returning_readers_only(
        self, make_store: MakeStore, clock: Clock
    ) -> None:
        store = make_store(history_ttl=5)
        append(store, "1", "2")
        clock.advance(6)
        append(store, "3")
        store.prune()
        assert follow(store) == [1, 2, 3]
        assert offsets(store) == [3]
        clock.advance(YOUNG_TIME)
        assert store.prune() == 3
        assert follow(store) == []

    def test_a_follower_whose_position_was_trimmed_learns_of_the_gap(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_size=SIZE)
        (first, *_) = store.append([("a", Message(data)) for data in "12345"])
        clock.advance(YOUNG_TIME)
        store.prune()
        page = store.read("a", after=1, limit=10, following=True)
        assert page.low == 3
        assert advance(first, page).lost

    def test_the_bytes_of_young_entries_are_bounded(
        self, make_store: MakeStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (memory, model_retention):
            monkeypatch.setattr(module, "YOUNG_SIZE", 1000)
        store = make_store(history_size=SIZE)
        append(store, *['"' + "ü" * 49 + '"'] * 20)  # each message has 100 bytes
        store.append([("old", Message("1"))] * 4)
        clock.advance(YOUNG_TIME)
        append(store, *['"' + "ü" * 49 + '"'] * 44)
        if not isinstance(store, memory.MemoryStreamStore):
            finish_store_threads()
        assert follow(store) == list(range(64 - SIZE - 10 + 1, 65))
        assert offsets(store) == [62, 63, 64]

    def test_an_idempotency_key_counts_within_the_history_size_only(self, make_store: MakeStore) -> None:
        store = make_store(history_size=SIZE)
        append(store, "1", key="k")
        append(store, *"234")
        assert append(store, "5", key="k") == [5]
        assert append(store, "6", key="k") == [5]
        assert follow(store) == [1, 2, 3, 4, 5]

    async def test_the_async_twin_does_the_same(self, make_store: MakeStore) -> None:
        store = make_store(history_size=SIZE)
        await store.aappend([("a", Message(data)) for data in "12345"])
        assert len((await store.aread("a", after=0, limit=10, following=True)).entries) == 5


class Follower:
    """Reads a stream after each announcement of its listener, like a hub with live subscribers."""

    def __init__(self, store: StreamStore) -> None:
        self._store = store
        self._position = StreamPosition("", 0)
        self._due = asyncio.Event()
        self.received: list[str] = []
        self.lost = False

    def hear(self, event: StreamEvent) -> None:
        self._due.set()

    async def run(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            while True:
                page = await self._store.aread("a", after=self._position.offset, limit=40, following=True)
                step = advance(self._position, page)
                self.lost |= step.lost
                self.received += [entry.data for entry in step.entries]
                self._position = step.position
                if not step.entries:
                    break


@model_stores
class TestLiveFollowers:
    """A process broadcasts more messages than the history size at once, while another process follows the stream."""

    COUNT = 150

    @pytest.fixture
    def broadcast_in_one_transaction(self, alias: str) -> Callable[[Any], None]:
        def broadcast(store: Any) -> None:
            with transaction.atomic(using=alias):
                for number in range(self.COUNT):
                    store.append_on_commit([("a", Message(str(number)))], using=alias)

        return broadcast

    async def follow(self, make_store: MakeStore, broadcast: Callable[[Any], None]) -> None:
        here, there = make_store(), make_store()
        follower = Follower(here)
        listener = here.listen(follower.hear)
        await listener.subscribe("a")
        task = asyncio.create_task(follower.run())
        await there._run(lambda: broadcast(there))
        await until(lambda: len(follower.received) >= self.COUNT or follower.lost)
        task.cancel()
        await listener.close()
        assert not follower.lost
        assert follower.received == [str(number) for number in range(self.COUNT)]

    async def test_no_message_of_one_transaction_is_lost(
        self, make_store: MakeStore, broadcast_in_one_transaction: Callable[[Any], None]
    ) -> None:
        await self.follow(make_store, broadcast_in_one_transaction)

    async def test_no_message_of_one_batch_is_lost(self, make_store: MakeStore) -> None:
        await self.follow(
            make_store, lambda store: store.append([("a", Message(str(number))) for number in range(self.COUNT)])
        )

    async def test_no_message_of_many_broadcasts_in_a_row_is_lost(self, make_store: MakeStore) -> None:
        def broadcast(store: Any) -> None:
            for number in range(self.COUNT):
                append(store, str(number))

        await self.follow(make_store, broadcast)

    async def test_the_next_poll_announces_a_doubted_stream(self, make_store: MakeStore) -> None:
        store = make_store()
        await store.aappend([("a", Message("1"))])
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        for stream in "ab":
            await listener.subscribe(stream)
        for stream in ("a", "b", "never subscribed"):
            listener.doubt(stream)
        await until(lambda: heard)
        for _ in range(2):
            await listener._poll()
        await asyncio.sleep(0)
        await listener.close()
        assert heard == [Advanced("a")]
