"""Deletes old rows of the model store, in small transactions that do not delay appends and reads."""

import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from django.db.models import F, Func, IntegerField, Model, OuterRef, Q, QuerySet, Subquery, Sum, Window

from reliable_cable.conf import CableSettings
from reliable_cable.models import Stream, StreamEntry, TransientEntry
from reliable_cable.protocol.positions import LATER, is_later_epoch, later_epoch
from reliable_cable.stores.database.database import ROWS_PER_TRANSACTION, Database
from reliable_cable.stores.database.server import DatabaseServer

from .base import YOUNG_SIZE, YOUNG_TIME

M = TypeVar("M", bound=Model)

#: The smallest step of trims (see `Retention.has_grown`). It must be a power of two.
TRIM_STEP = 64
#: How long, in seconds, a transient message is stored, so that other processes can find it.
TRANSIENT_TTL = 30.0

#: A condition for queries that is true for streams that have had a message, even if their history was deleted later.
EXISTS: Final = Q(tail__gt=0) | Q(epoch__endswith=LATER)


class _ByteLength(Func):
    """An SQL function that returns the size of a string in bytes.

    `LENGTH` would count characters, for which PostgreSQL must decompress the string.
    """

    function = "OCTET_LENGTH"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        """Use another function on SQLite, which has OCTET_LENGTH only since version 3.43."""
        return self.as_sql(compiler, connection, template="LENGTH(CAST(%(expressions)s AS BLOB))", **context)


class Retention:
    """Deletes entries beyond their stream's history size or TTL, and other old rows.

    The transaction that deletes entries of a stream also changes the stream's `low` and `trimmed_at`, under the lock on
    the stream's row. Entries younger than `YOUNG_TIME` are not deleted, because followers may need them. But if the
    young entries beyond the history size or TTL exceed `YOUNG_SIZE` bytes in total, the oldest of them are deleted.
    """

    def __init__(self, database: Database, settings: CableSettings, server: DatabaseServer) -> None:
        self._database = database
        self._settings = settings
        self._server = server
        self._lock = threading.Lock()
        #: The streams that will be trimmed soon.
        self._trimming: set[str] = set()

    def has_expired(self, name: str, low: int, tail: int, tail_at: float, now: float) -> bool:
        """Return whether all entries of a stream are so old that they can be deleted.

        Args:
            name: the name of the stream.
            low: the lowest offset of its entries.
            tail: the offset of its newest entry.
            tail_at: the time of its newest entry, in seconds since 1970.
            now: the current time.
        """
        ttl = max(self._settings.policy(name).history_ttl, YOUNG_TIME)
        return low <= tail and tail_at <= now - ttl

    def has_grown(self, name: str, low: int, tail: int, old_tail: int) -> bool:
        """Return whether a stream must be trimmed after an append.

        A stream beyond its history size is trimmed whenever its tail reaches or passes a multiple of a step. The step
        is `TRIM_STEP`, or more for a large stream. If trims depended only on the number of stored entries, each append
        in a burst would cause a trim that deletes nothing, because young entries are not deleted.

        Args:
            name: the name of the stream.
            low: the lowest offset of its entries.
            tail: the offset of its newest entry after the append.
            old_tail: the offset of its newest entry before the append.
        """
        kept = tail - low + 1
        # The step grows with the stream. Each step is a power of two, so the multiples of a larger step are also
        # multiples of all smaller ones.
        step = max(TRIM_STEP, 1 << (kept // 10).bit_length() >> 1)
        return tail // step > old_tail // step and kept > self._settings.policy(name).history_size

    def trim_soon(self, names: Iterable[str]) -> None:
        """Trim streams in a store thread, so that appends do not wait for the trims."""
        with self._lock:
            due = [name for name in names if name not in self._trimming]
            self._trimming.update(due)
        for name in due:
            self._database.delete_soon(partial(self._trim_due, name))

    def _trim_due(self, name: str) -> None:
        # The name is removed before the trim, so that appends during the trim can request another one.
        with self._lock:
            self._trimming.discard(name)
        self.trim(name)

    def trim(self, name: str) -> None:
        """Delete all entries of a stream beyond its history size or TTL, in small transactions."""
        while self._database.write(partial(self._trim, name, ROWS_PER_TRANSACTION)) == ROWS_PER_TRANSACTION:
            pass

    def _trim(self, name: str, limit: int) -> int:
        locked = self._database.rows(Stream).select_for_update().filter(name=name)
        stream = locked.annotate(now=self._server.now()).first()
        if stream is None:
            return 0
        low = min(self._first_to_keep(stream, stream.now), stream.low + limit)
        if low > stream.low:
            self._delete_below(stream, low)
        return max(low - stream.low, 0)

    def _first_to_keep(self, stream: Stream, now: float) -> int:
        """Return the offset of the oldest entry that must not be deleted. The caller must have locked the stream."""
        entries = self._database.rows(StreamEntry).filter(stream=stream.pk)

        def first_after(time: float) -> int:
            later = entries.filter(created__gt=time).order_by("created", "offset")
            offset = later.values_list("offset", flat=True).first()
            return stream.tail + 1 if offset is None else offset

        policy = self._settings.policy(stream.name)
        low = max(stream.tail - policy.history_size + 1, first_after(now - policy.history_ttl))
        if low <= stream.low:
            return stream.low
        young = min(low, first_after(now - YOUNG_TIME))
        newer_bytes = Window(Sum(_ByteLength("data")), order_by=F("offset").desc())
        excess = (
            entries.filter(offset__gte=young, offset__lt=low).annotate(size=newer_bytes).filter(size__gt=YOUNG_SIZE)
        )
        offset = excess.order_by("-offset").values_list("offset", flat=True).first()
        return young if offset is None else offset + 1

    def _delete_below(self, stream: Stream, low: int) -> None:
        old = self._database.rows(StreamEntry).filter(stream=stream.pk, offset__lt=low)
        newest = old.order_by("-offset").values_list("created", flat=True).first()
        old.delete()
        trimmed_at = stream.tail_at if newest is None else newest
        self._database.rows(Stream).filter(pk=stream.pk).update(low=low, trimmed_at=trimmed_at)

    def with_times(self, streams: QuerySet[Stream]) -> QuerySet[Stream]:
        """Annotate a query of streams with the values that `end_epochs` needs.

        `now` is the current time, `present` is the id of the database's current data set (the lineage), and `ended` is
        whether the stream's epoch began in another lineage.
        """
        return streams.annotate(
            now=self._server.now(), present=self._server.lineage(), ended=self._server.is_foreign("lineage")
        )

    def end_epochs(self, streams: Sequence[Any]) -> None:
        """Delete streams with their entries, and insert rows with new epochs. The caller must have locked the streams.

        The new rows have other primary keys, so that a read that began earlier finds no entries of the new epoch.

        Args:
            streams: rows from a query that `with_times` has annotated.
        """
        self._database.rows(Stream).filter(pk__in=[stream.pk for stream in streams]).delete()
        self._database.rows(Stream).bulk_create(
            Stream(
                name=stream.name,
                epoch=later_epoch(secrets.token_hex(8)),
                tail_at=max(stream.now, stream.tail_at),
                trimmed_at=stream.tail_at if stream.tail else stream.trimmed_at,
                lineage=stream.present,
            )
            for stream in streams
            # A stream that has had no message, or whose epoch began in another lineage, does not exist. It gets no new
            # row.
            if not stream.ended and (stream.tail or is_later_epoch(stream.epoch))
        )

    def forget_all(self) -> Iterator[list[str]]:
        """End the epochs of all existing streams. After each small transaction, yield the names of its streams."""
        newest = self._database.rows(Stream).order_by("-pk").values_list("pk", flat=True).first()
        while newest is not None:
            names = self._database.write(partial(self._forget_some, newest))
            if names is None:
                return
            yield names

    def _forget_some(self, newest: int) -> list[str] | None:
        streams = self._database.rows(Stream)
        ids = list(streams.filter(pk__lte=newest).order_by("pk").values_list("pk", flat=True)[:ROWS_PER_TRANSACTION])
        if not ids:
            return None
        deleted: list[Stream] = []
        rows = 0
        # The streams are locked in the order of their names. Appends use the same order, so that there is no deadlock.
        for stream in self.with_times(streams.select_for_update()).filter(pk__in=ids).order_by("name"):
            rows += 1 + stream.tail - stream.low + 1
            if rows > ROWS_PER_TRANSACTION and deleted:
                break
            if rows > ROWS_PER_TRANSACTION:
                self._delete_below(stream, stream.low + ROWS_PER_TRANSACTION)
                break
            deleted.append(stream)
        self.end_epochs(deleted)
        return [stream.name for stream in deleted]

    def prune(self, limit: int) -> int:
        """Delete up to about `limit` old entries, idle streams and transient messages. Return how many were deleted."""
        count = self._prune_entries(limit)
        for delete in (self._delete_idle, self.delete_transients):
            if count < limit:
                count += delete(limit - count)
        return count

    def _prune_entries(self, limit: int) -> int:
        entries = self._database.rows(StreamEntry).filter(stream=OuterRef("pk")).order_by("created", "offset")
        filled = (
            self._database.rows(Stream)
            .filter(low__lte=F("tail"))
            .annotate(oldest=Subquery(entries.values("created")[:1]), now=self._server.now())
            .order_by("pk")
        )
        count = last = 0
        while count < limit:
            streams = list(filled.filter(pk__gt=last)[:ROWS_PER_TRANSACTION])
            for stream in streams:
                policy = self._settings.policy(stream.name)
                age = float("inf") if stream.oldest is None else stream.now - stream.oldest
                overfull = stream.tail - stream.low + 1 > policy.history_size
                if count < limit and age >= YOUNG_TIME and (overfull or age >= policy.history_ttl):
                    count += self._database.write(
                        partial(self._trim, stream.name, min(limit - count, ROWS_PER_TRANSACTION))
                    )
            if len(streams) < ROWS_PER_TRANSACTION:
                break
            last = streams[-1].pk
        return count

    def _delete_idle(self, limit: int) -> int:
        ttls = {self._settings.history_meta_ttl, *map(self._meta_ttl_of, self._settings.streams)}
        idle = self._database.rows(Stream).filter(low__gt=F("tail"), tail_at__lte=self._server.ago(min(ttls)))
        if len(ttls) > 1:
            due = self._due(idle, limit)
            idle = self._database.rows(Stream).filter(low__gt=F("tail"), pk__in=due)
        # The streams are locked, so that no message is added before they are deleted. Streams that are already locked
        # are not idle, and are skipped.
        return self._delete_some(idle.order_by("pk").select_for_update(skip_locked=True), limit)

    def _meta_ttl_of(self, pattern: str) -> float:
        return self._settings.policy_of(pattern).history_meta_ttl

    def _due(self, idle: QuerySet[Stream], limit: int) -> list[int]:
        """Return the primary keys of up to `limit` idle streams whose `history_meta_ttl` has passed."""
        due: list[int] = []
        last = 0
        rows = idle.annotate(age=self._server.now() - F("tail_at")).order_by("pk").values_list("pk", "name", "age")
        while len(due) < limit and (some := list(rows.filter(pk__gt=last)[:ROWS_PER_TRANSACTION])):
            due += [pk for pk, name, age in some if age >= self._settings.policy(name).history_meta_ttl]
            last = some[-1][0]
        return due[:limit]

    def delete_transients(self, limit: int = ROWS_PER_TRANSACTION) -> int:
        """Delete up to `limit` transient messages that are older than `TRANSIENT_TTL`, and return their number."""
        old = self._database.rows(TransientEntry).filter(created__lt=self._server.ago(TRANSIENT_TTL))
        return self._delete_some(old.order_by("created"), limit)

    def _delete_some(self, rows: QuerySet[M], limit: int) -> int:
        """Delete the first `limit` rows of a query in a transaction, and return their number."""

        def delete() -> int:
            ids = list(rows.values_list("pk", flat=True)[:limit])
            if ids:
                self._database.rows(rows.model).filter(pk__in=ids).delete()
            return len(ids)

        return self._database.write(delete)
