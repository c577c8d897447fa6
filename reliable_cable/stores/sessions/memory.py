"""The session store in the memory of one process."""

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
class _StoredRecord:
    identity: Identity
    authenticated: float
    data: str
    expires: float


class MemorySessionStore(SessionStore):
    """Stores session records in a dict, as JSON text, so that callers share no objects with the store."""

    place = "memory of this process"

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock=clock)
        # Both dicts are in the order of expiry, because new and renewed items move to the end.
        self._records: OrderedDict[str, _StoredRecord] = OrderedDict()
        self._revoked: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Store records. If one of them is not JSON, no record is stored."""
        if self.settings.sessions_ttl == 0:
            return
        expires = self.clock() + self.settings.sessions_ttl
        new = {
            sid: _StoredRecord(dict(record.identity), record.authenticated, json.dumps(record.data), expires)
            for sid, record in records.items()
        }
        with self._lock:
            for sid, record in new.items():
                self._records[sid] = record
                self._records.move_to_end(sid)

    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return a copy of a record."""
        with self._lock:
            record = self._records.get(sid)
            times = self._revocation_times(identity)
        if record is None or record.expires <= self.clock() or record.identity != identity:
            return None
        if is_revoked(record.authenticated, times):
            return None
        return SessionRecord(dict(record.identity), record.authenticated, json.loads(record.data), len(record.data))

    def touch(self, sids: Collection[str]) -> set[str]:
        """Renew the TTL of records. Expired records are not renewed."""
        now = self.clock()
        missing: set[str] = set()
        with self._lock:
            for sid in sids:
                record = self._records.get(sid)
                if record is not None and record.expires > now:
                    self._records[sid] = replace(record, expires=now + self.settings.sessions_ttl)
                    self._records.move_to_end(sid)
                else:
                    missing.add(sid)
        return missing

    def delete(self, sids: Collection[str]) -> None:
        """Delete records."""
        with self._lock:
            for sid in sids:
                self._records.pop(sid, None)

    def revoke(self, condition: Identity) -> float:
        """Store the time of a revocation."""
        now = self.clock()
        with self._lock:
            key = condition_key(condition)
            self._revoked[key] = now
            self._revoked.move_to_end(key)
            while next(iter(self._revoked.values())) <= now - self.settings.sessions_ttl - CLOCK_MARGIN:
                self._revoked.popitem(last=False)
        return now

    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the time of the last revocation that matches it; 0 if none matches."""
        with self._lock:
            return [max(self._revocation_times(identity), default=0.0) for identity in identities]

    def prune(self, *, limit: int = 1000) -> int:
        """Delete expired records, the oldest first."""
        now = self.clock()
        pruned = 0
        with self._lock:
            while pruned < limit and self._records and next(iter(self._records.values())).expires <= now:
                self._records.popitem(last=False)
                pruned += 1
        return pruned

    def _revocation_times(self, identity: Identity) -> list[float]:
        return [self._revoked[key] for key in condition_keys(identity) if key in self._revoked]

    async def _run(self, call: Callable[[], T]) -> T:
        return call()
