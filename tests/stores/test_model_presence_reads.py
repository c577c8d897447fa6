"""Polls and reads of events by the listener of the presence store in the database, including reads that fail."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from reliable_cable.exceptions import StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.presence import model_listener
from reliable_cable.stores.presence.model import ModelPresenceStore

from .conftest import until
from .presence import joined
from .test_model_presence import MakePresence, heard, here, make, on_every_database, queries

__all__ = ["heard", "here", "make", "queries"]


class GatedReads:
    """Lets a test decide when the reads of a store end, and whether they fail.

    Args:
        store: the store.
        patch: replaces the method `aread_events` of the store.
    """

    def __init__(self, store: ModelPresenceStore, patch: pytest.MonkeyPatch) -> None:
        self._read = store.aread_events
        #: The streams of each read that has reached its gate, where it waits for `end`.
        self.begun: list[list[str]] = []
        self._gates: list[asyncio.Future[None]] = []
        self._is_open = False
        patch.setattr(store, "aread_events", self._gated)

    async def _gated(self, positions: Mapping[str, StreamPosition]) -> Any:
        found = await self._read(positions)
        self.begun.append(list(positions))
        if self._is_open:
            return found
        self._gates.append(asyncio.get_running_loop().create_future())
        await self._gates[-1]
        return found

    def end(self, error: Exception | None = None) -> None:
        """Let the newest read end, with an error if one is given."""
        if error is None:
            self._gates[-1].set_result(None)
        else:
            self._gates[-1].set_exception(error)

    def open(self) -> None:
        """Let all reads end that have begun, and all later ones."""
        self._is_open = True
        for gate in self._gates:
            if not gate.done():
                gate.set_result(None)


@on_every_database
class TestPolls:
    @pytest.fixture(autouse=True)
    def no_complete_polls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make polls read the positions of all streams only after a new event or a failed read."""
        monkeypatch.setattr(model_listener, "COMPLETE_INTERVAL", 3600)

    async def test_without_new_events_a_poll_reads_only_one_value(
        self, make: MakePresence, heard: list[Any], monkeypatch: pytest.MonkeyPatch, queries: list[str]
    ) -> None:
        def polls(table: str) -> int:
            return len([sql for sql in queries if sql.startswith("SELECT") and f'FROM "reliable_cable_{table}"' in sql])

        await until(lambda: polls("presenceentry"))
        queries.clear()
        await until(lambda: polls("presenceentry") >= 3)
        assert polls("presencestream") == 0

    async def test_events_of_another_process_are_found(self, make: MakePresence, heard: list[Any]) -> None:
        there = make(notify=False)
        for number in range(3):
            there.join("s", "phone", str(number))
            await until(lambda: heard[-1:] == [joined(str(number))])  # noqa: B023 - called in this round

    async def test_a_failed_read_is_repeated(
        self, make: MakePresence, here: ModelPresenceStore, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = make(notify=False)
        with monkeypatch.context() as patch:
            reads = GatedReads(here, patch)
            there.join("s", "phone", "1")
            for number in range(3):
                await until(lambda: len(reads.begun) > number)  # noqa: B023 - called in this round
                reads.end(StoreError("down"))
        await until(lambda: heard)
        assert heard == [joined("1")]


@on_every_database
async def test_events_that_become_visible_late_are_found(
    here: ModelPresenceStore, make: MakePresence, heard: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if an event with a higher id had become visible earlier.
    monkeypatch.setattr(here, "newest", lambda: 100)
    monkeypatch.setattr(model_listener, "COMPLETE_INTERVAL", 0.05)
    make(notify=False).join("s", "phone", "1")
    await until(lambda: heard)
    assert heard == [joined("1")]


@on_every_database
class TestReads:
    async def test_after_a_failed_read_the_events_that_came_during_it_are_read(
        self, make: MakePresence, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make(notify=False)
        heard: list[Any] = []
        listener = store.listen(heard.append)
        await listener.subscribe_many(["s", "t"])
        reads = GatedReads(store, monkeypatch)
        fence = asyncio.create_task(listener.fence("t"))
        await until(lambda: reads.begun)
        await asyncio.to_thread(store.join, "s", "phone", "1")
        await until(lambda: "s" in listener._stale)
        await listener.unsubscribe("t")
        reads.end(StoreError("down"))
        await fence
        reads.open()  # a poll may have begun the next read already
        await until(lambda: heard)
        assert heard == [joined("1")]
        await listener.close()

    async def test_a_fence_does_not_wait_for_later_events(
        self, make: MakePresence, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make(notify=False, poll_interval=3600)
        listener = store.listen(lambda event: None)
        await listener.subscribe_many(["s", "t"])
        with monkeypatch.context() as patch:
            reads = GatedReads(store, patch)
            fence = asyncio.create_task(listener.fence("t"))
            await until(lambda: reads.begun)
            await asyncio.to_thread(store.join, "s", "phone", "1")
            await until(lambda: "s" in listener._stale)
            later = asyncio.create_task(listener.fence("t"))
            reads.end()
            await until(lambda: len(reads.begun) == 2)
            await until(fence.done)
            assert not later.done(), "its read has only begun"
            reads.end(StoreError("down"))
            await until(later.done)
        await listener.close()

    async def test_a_listener_that_is_closed_ends_its_fences(
        self, make: MakePresence, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make(notify=False, poll_interval=3600)
        listener = store.listen(lambda event: None)
        await listener.subscribe("s")
        with monkeypatch.context() as patch:
            reads = GatedReads(store, patch)
            fences = [asyncio.create_task(listener.fence("s"))]
            await until(lambda: reads.begun)
            fences.append(asyncio.create_task(listener.fence("s")))
            await until(lambda: "s" in listener._stale)
            await listener.close()
            await asyncio.wait_for(asyncio.gather(*fences), 10)

    async def test_a_listener_that_is_closed_before_a_read_begins_ends_its_fences(self, make: MakePresence) -> None:
        listener = make(notify=False, poll_interval=3600).listen(lambda event: None)
        await listener.subscribe("s")
        fence = asyncio.create_task(listener.fence("s"))
        asyncio.get_running_loop().call_soon(lambda: listener._reading and listener._reading.cancel())
        await until(lambda: listener._reading is not None or fence.done())
        await listener.close()
        await asyncio.wait_for(fence, 10)
