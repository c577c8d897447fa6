"""How the listener of the presence store in the database reads events: failed reads, and reads that are running."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from reliable_cable.exceptions import StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.presence.model import ModelPresenceStore

from .conftest import until
from .presence import joined
from .test_model_presence import MakePresence, make, on_every_database

__all__ = ["make"]


class GatedReads:
    """Lets a test decide when the reads of a store end, and whether they fail.

    Args:
        store: the store.
        patch: replaces the method of the store.
    """

    def __init__(self, store: ModelPresenceStore, patch: pytest.MonkeyPatch) -> None:
        self._read = store.aread_events
        #: The streams of each read that has begun.
        self.begun: list[list[str]] = []
        self._gates: list[asyncio.Future[None]] = []
        patch.setattr(store, "aread_events", self._gated)

    async def _gated(self, positions: Mapping[str, StreamPosition]) -> Any:
        found = await self._read(positions)
        self.begun.append(list(positions))
        self._gates.append(asyncio.get_running_loop().create_future())
        await self._gates[-1]
        return found

    def end(self, error: Exception | None = None) -> None:
        """Let the running read end."""
        if error is None:
            self._gates[-1].set_result(None)
        else:
            self._gates[-1].set_exception(error)


@on_every_database
class TestReads:
    async def test_after_a_failed_read_the_events_that_came_during_it_are_read(
        self, make: MakePresence, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make(notify=False)
        heard: list[Any] = []
        listener = store.listen(heard.append)
        await listener.subscribe_many(["s", "t"])
        with monkeypatch.context() as patch:
            reads = GatedReads(store, patch)
            fence = asyncio.create_task(listener.fence("t"))
            await until(lambda: reads.begun)
            await asyncio.to_thread(store.join, "s", "phone", "1")
            await until(lambda: "s" in listener._stale)
            await listener.unsubscribe("t")
            reads.end(StoreError("down"))
            await fence
        await until(lambda: heard)
        assert heard == [joined("1")]
        await listener.close()
