"""A session store that fails on demand, and sessions to write to it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from reliable_cable.conf import read_settings
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.session_losses import WITNESS_PREFIX
from reliable_cable.hub.session_records import SessionRecords
from reliable_cable.identity import Identity
from reliable_cable.stores.sessions.base import SessionRecord
from reliable_cable.stores.sessions.memory import MemorySessionStore

ann = {"user": "ann"}


class Store(MemorySessionStore):
    """Fails while `down` is True, does not respond while `open` is not set, and keeps the records of each write."""

    may_lose_data = True

    def __init__(self, **settings: Any) -> None:
        super().__init__(replace(read_settings({"ENGINE": "memory"}), **settings))
        self.down = False
        self.open = asyncio.Event()
        self.open.set()
        self.saves: list[dict[str, SessionRecord]] = []
        self.loads: list[list[str]] = []
        self.tried = asyncio.Event()

    async def _reach(self) -> None:
        self.tried.set()
        await self.open.wait()
        if self.down:
            raise StoreError("down")

    async def asave(self, records: Mapping[str, SessionRecord]) -> None:
        await self._reach()
        self.saves.append({sid: record for sid, record in records.items() if not sid.startswith(WITNESS_PREFIX)})
        await super().asave(records)

    async def aload_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        await self._reach()
        self.loads.append([sid for sid, _ in wanted])
        return await super().aload_many(wanted)

    async def atouch(self, sids: Collection[str]) -> set[str]:
        await self._reach()
        return await super().atouch(sids)

    async def adelete(self, sids: Collection[str]) -> None:
        await self._reach()
        await super().adelete(sids)


class Session:
    """A connection whose session record holds a number."""

    def __init__(self, sid: str, size: int = 0) -> None:
        self.sid = sid
        self.size = size
        self.number = 0

    @property
    def sids(self) -> frozenset[str]:
        return frozenset([self.sid])

    def record(self) -> SessionRecord:
        return SessionRecord(ann, 0, {"number": self.number}, self.size)


async def number(records: SessionRecords, sid: str = "a") -> Any:
    """Return the number in the stored record of a session; None if there is no record."""
    (record,) = await MemorySessionStore.aload_many(records.store, [(sid, ann)])
    return record and record.data["number"]


async def until_kept(records: SessionRecords, wanted: Any, sid: str = "a") -> None:
    """Wait until the stored record has this number; None: until there is no record."""
    async with asyncio.timeout(30):
        while await number(records, sid) != wanted:  # noqa: ASYNC110 - a store has no events
            await asyncio.sleep(0.001)
