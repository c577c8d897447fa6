"""What the model store deletes, in bounded transactions: by size and time, off the path of appends and reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from django.db.models import F, OuterRef, Subquery

from reliable_cable.conf import CableSettings
from reliable_cable.database import Database
from reliable_cable.models import Stream, StreamEntry, TransientEntry

from .base import IDLE_STREAM_TTL

#: Rows that one transaction deletes or looks at.
BATCH = 500
#: Entries that a stream may hold beyond its size (or a tenth of it) before they are deleted; they are never returned.
TRIM_SLACK = 50
#: Seconds for which other processes can find a transient message.
TRANSIENT_TTL = 30.0


class Retention:
    """Deletes what is past its stream's size or time.

    `low` and `trimmed_at` of a stream change in the transaction that deletes the entries, under the lock on its row.
    """

    def __init__(self, database: Database, settings: CableSettings, clock: Callable[[], float]) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock

    def is_due(self, stream: Stream) -> bool:
        """Say whether trimming a stream is worth a transaction: it is too large, or all of it has expired."""
        policy = self._settings.policy(stream.name)
        kept = stream.tail - stream.low + 1
        overfull = kept > policy.history_size + max(TRIM_SLACK, policy.history_size // 10)
        return overfull or (kept > 0 and stream.tail_at <= self._clock() - policy.history_ttl)

    def trim(self, name: str) -> None:
        """Delete all of a stream's entries that are past its size or TTL, a batch at a time."""
        while self._database.write(partial(self._trim, name, BATCH)):
            pass

    def _trim(self, name: str, limit: int) -> int:
        stream = self._database.rows(Stream).select_for_update().filter(name=name).first()
        if stream is None:
            return 0
        policy = self._settings.policy(name)
        entries = self._database.rows(StreamEntry).filter(stream=stream.pk)
        # Asked under the lock: a value read together with the row may be older than the lock.
        alive = entries.filter(created__gt=self._clock() - policy.history_ttl).order_by("created", "offset")
        oldest = alive.values_list("offset", flat=True).first()
        low = max(stream.tail - policy.history_size + 1, stream.tail + 1 if oldest is None else oldest)
        low = min(low, stream.low + limit)
        if low <= stream.low:
            return 0
        gone = entries.filter(offset__lt=low)
        newest = gone.order_by("-offset").values_list("created", flat=True).first()
        gone.delete()
        trimmed_at = stream.tail_at if newest is None else newest
        self._database.rows(Stream).filter(pk=stream.pk).update(low=low, trimmed_at=trimmed_at)
        return low - stream.low

    def prune(self, limit: int) -> int:
        """Delete up to about `limit` entries, idle streams and old transient messages; return how many went."""
        count = self._prune_entries(limit)
        if count < limit:
            count += self._database.write(partial(self._delete_idle, limit - count))
        if count < limit:
            count += self.delete_transients(limit - count)
        return count

    def _prune_entries(self, limit: int) -> int:
        now = self._clock()
        entries = self._database.rows(StreamEntry).filter(stream=OuterRef("pk")).order_by("created", "offset")
        filled = (
            self._database.rows(Stream)
            .filter(low__lte=F("tail"))
            .annotate(oldest=Subquery(entries.values("created")[:1]))
            .order_by("pk")
        )
        count = last = 0
        while count < limit:
            streams = list(filled.filter(pk__gt=last)[:BATCH])
            for stream in streams:
                policy = self._settings.policy(stream.name)
                overfull = stream.tail - stream.low + 1 > policy.history_size
                expired = stream.oldest is None or stream.oldest <= now - policy.history_ttl
                if count < limit and (overfull or expired):
                    count += self._database.write(partial(self._trim, stream.name, min(limit - count, BATCH)))
            if len(streams) < BATCH:
                break
            last = streams[-1].pk
        return count

    def _delete_idle(self, limit: int) -> int:
        before = self._clock() - IDLE_STREAM_TTL
        idle = self._database.rows(Stream).filter(low__gt=F("tail"), tail_at__lte=before).order_by("pk")
        # Locked, so that none gets a message meanwhile; those in use are passed over.
        ids = list(idle.select_for_update(skip_locked=True).values_list("pk", flat=True)[:limit])
        if ids:
            self._database.rows(Stream).filter(pk__in=ids).delete()
        return len(ids)

    def delete_transients(self, limit: int = BATCH) -> int:
        """Delete up to `limit` transient messages that every process has had time to find; return how many went."""
        old = self._database.rows(TransientEntry).filter(created__lt=self._clock() - TRANSIENT_TTL)

        def delete() -> int:
            ids = list(old.order_by("created").values_list("pk", flat=True)[:limit])
            if ids:
                self._database.rows(TransientEntry).filter(pk__in=ids).delete()
            return len(ids)

        return self._database.write(delete)
