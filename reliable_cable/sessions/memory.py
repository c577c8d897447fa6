"""Sessions in the memory of one process."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from reliable_cable.conf import CableSettings

from .base import SessionRecord, SessionStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept:
    user: str
    data: str
    expires: float


class MemorySessionStore(SessionStore):
    """Keeps sessions in a dict, as JSON text, so that nobody shares its objects; they end with the process."""

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock=clock)
        # In the order of expiry: whatever gets a new time goes to the end.
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Store records; the first one that is not JSON raises, and none is stored."""
        if self.settings.sessions_ttl == 0:
            return
        expires = self.clock() + self.settings.sessions_ttl
        kept = {sid: _Kept(record.user, json.dumps(record.data), expires) for sid, record in records.items()}
        with self._lock:
            for sid, record in kept.items():
                self._kept[sid] = record
                self._kept.move_to_end(sid)

    def load(self, sid: str) -> SessionRecord | None:
        """Return a record's copy."""
        with self._lock:
            kept = self._kept.get(sid)
        if kept is None or kept.expires <= self.clock():
            return None
        return SessionRecord(kept.user, json.loads(kept.data))

    def touch(self, sids: Collection[str]) -> None:
        """Give records a new time; what has expired stays so."""
        now = self.clock()
        with self._lock:
            for sid in sids:
                kept = self._kept.get(sid)
                if kept is not None and kept.expires > now:
                    self._kept[sid] = _Kept(kept.user, kept.data, now + self.settings.sessions_ttl)
                    self._kept.move_to_end(sid)

    def delete(self, sids: Collection[str]) -> None:
        """Remove records."""
        with self._lock:
            for sid in sids:
                self._kept.pop(sid, None)

    def prune(self, *, limit: int = 1000) -> int:
        """Delete the oldest of the expired records."""
        now = self.clock()
        pruned = 0
        with self._lock:
            while pruned < limit and self._kept and next(iter(self._kept.values())).expires <= now:
                self._kept.popitem(last=False)
                pruned += 1
        return pruned

    async def _run(self, call: Callable[[], T]) -> T:
        return call()
