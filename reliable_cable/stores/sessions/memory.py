"""Sessions in the memory of one process."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from reliable_cable.conf import CableSettings
from reliable_cable.identity import Identity, condition_key, condition_keys

from .base import CLOCK_MARGIN, SessionRecord, SessionStore, is_revoked

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept:
    identity: Identity
    authenticated: float
    data: str
    expires: float


class MemorySessionStore(SessionStore):
    """Keeps sessions in a dict, as JSON text, so that nobody shares its objects; they end with the process."""

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock=clock)
        # Both in the order of expiry: whatever gets a new time goes to the end.
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._revoked: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Store records; the first one that is not JSON raises, and none is stored."""
        if self.settings.sessions_ttl == 0:
            return
        expires = self.clock() + self.settings.sessions_ttl
        kept = {
            sid: _Kept(dict(record.identity), record.authenticated, json.dumps(record.data), expires)
            for sid, record in records.items()
        }
        with self._lock:
            for sid, record in kept.items():
                self._kept[sid] = record
                self._kept.move_to_end(sid)

    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return a record's copy."""
        with self._lock:
            kept = self._kept.get(sid)
            times = self._times(identity)
        if kept is None or kept.expires <= self.clock() or kept.identity != identity:
            return None
        if is_revoked(kept.authenticated, times):
            return None
        return SessionRecord(dict(kept.identity), kept.authenticated, json.loads(kept.data))

    def touch(self, sids: Collection[str]) -> set[str]:
        """Give records a new time; what has expired stays so."""
        now = self.clock()
        missing: set[str] = set()
        with self._lock:
            for sid in sids:
                kept = self._kept.get(sid)
                if kept is not None and kept.expires > now:
                    self._kept[sid] = replace(kept, expires=now + self.settings.sessions_ttl)
                    self._kept.move_to_end(sid)
                else:
                    missing.add(sid)
        return missing

    def delete(self, sids: Collection[str]) -> None:
        """Remove records."""
        with self._lock:
            for sid in sids:
                self._kept.pop(sid, None)

    def revoke(self, condition: Identity) -> float:
        """Remember the time."""
        now = self.clock()
        with self._lock:
            key = condition_key(condition)
            self._revoked[key] = now
            self._revoked.move_to_end(key)
            while next(iter(self._revoked.values())) <= now - self.settings.sessions_ttl - CLOCK_MARGIN:
                self._revoked.popitem(last=False)
        return now

    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the last time that sessions of its kind were revoked."""
        with self._lock:
            return [max(self._times(identity), default=0.0) for identity in identities]

    def prune(self, *, limit: int = 1000) -> int:
        """Delete the oldest of the expired records."""
        now = self.clock()
        pruned = 0
        with self._lock:
            while pruned < limit and self._kept and next(iter(self._kept.values())).expires <= now:
                self._kept.popitem(last=False)
                pruned += 1
        return pruned

    def _times(self, identity: Identity) -> list[float]:
        return [self._revoked[key] for key in condition_keys(identity) if key in self._revoked]

    async def _run(self, call: Callable[[], T]) -> T:
        return call()
