"""The stream store of the embedded engine: the project's own database, SQLite or PostgreSQL (DESIGN.md, Engines)."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from django.db import connections
from django.db.models import Exists, OuterRef, QuerySet, Subquery

from reliable_cable import models
from reliable_cable.concurrency.on_commit import call_after_commit, is_manual, report_failure
from reliable_cable.concurrency.threads import run_store, run_store_write
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.database.database import Database, repeated_read
from reliable_cable.stores.database.server import DatabaseServer

from .base import Advanced, Message, StreamEvent, StreamListener, StreamStore, Transient
from .bus import Bus
from .model_outbox import Numbering
from .model_polling import Poll, PollingListener, SeenIds
from .model_retention import Retention
from .wakeup import Waker

T = TypeVar("T")
logger = logging.getLogger("reliable_cable")

#: Rows that one transaction numbers, or one query looks for.
BATCH = 500
#: Seconds between deletions of old transient messages.
SWEEP_INTERVAL = 10.0


@dataclass(frozen=True, slots=True)
class _Written:
    """What one transaction stored.

    Args:
        positions: of the caller's messages.
        events: to be announced after the commit.
        overfull: streams that are worth trimming.
        complete: whether all of it was stored. False if outbox rows were numbered or epochs ended first, and the rest
            needs another transaction.
    """

    positions: list[StreamPosition]
    events: list[StreamEvent]
    overfull: Collection[str]
    complete: bool


class ModelStreamStore(StreamStore):
    """Keeps streams in the tables of `reliable_cable.models`, on `settings.database`.

    Offsets are given under a lock on the stream's row, in a short transaction of its own. Inside the caller's
    transaction nothing is locked: messages wait in the outbox, to be numbered after the commit by its hook, by the
    next append or by any process's poll.

    Args:
        settings: `database`, and the sizes and times of history.
        clock: for tests. None: the database server's clock on PostgreSQL, this host's clock on SQLite.
        announce: takes the events after each commit; None: they go to this process's listeners, and others are woken.
    """

    supports_durable = True
    uses_database = True

    def __init__(
        self,
        settings: CableSettings,
        *,
        clock: Callable[[], float] | None = None,
        announce: Callable[[Sequence[StreamEvent]], None] | None = None,
    ) -> None:
        super().__init__(settings, clock=clock or time.time)
        self._announce = announce or self._announce_and_wake
        self._database = Database(settings)
        self._server = DatabaseServer(self._database, clock)
        self._numbering = Numbering(self._database, settings)
        self._retention = Retention(self._database, settings, self._server)
        #: This process's listeners.
        self.bus = Bus()
        self._waker = Waker()
        self._id = secrets.token_hex(8)
        self._swept = 0.0

    @property
    def origin(self) -> str:
        """Name this store in this process: a forked child is another one."""
        return f"{self._id}.{os.getpid()}"

    # -- appending ----------------------------------------------------------------------------------------------------

    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, all or none, in this order, and announce them; return their positions.

        Always outside of the caller's transaction, if there is one: then on another connection, in a store thread.
        """
        items = tuple(items)
        if not items:
            return []
        names = sorted({name for name, _ in items})
        for name in names:
            if not self.settings.policy(name).history_size:
                raise BroadcastError(f"The stream {name!r} keeps no history; publish to it as a transient message.")
        return self._database.outside(partial(self._append, names, items))

    def append_on_commit(self, items: Sequence[tuple[str, Message]], using: str) -> None:
        """Store messages when the transaction that is open on database `using` commits; never if it does not.

        If the transaction is on `settings.database`, kept messages are stored as part of it. If it has no `on_commit`
        hooks (`set_autocommit(False)`), the next append or poll after the commit numbers them.
        """
        kept = [item for item in items if self.settings.policy(item[0]).history_size]
        for name, message in items:
            if not self.settings.policy(name).history_size:
                failed = partial(report_failure, type(self), [name])
                call_after_commit(partial(self.publish_transient, name, message), [using], failed=failed)
        if not kept:
            return
        if using != self.settings.database:
            super().append_on_commit(kept, using)
            return
        with self._database.broadcast_errors():
            self._database.rows(models.OutboxEntry).bulk_create(
                models.OutboxEntry(
                    name=name, data=message.data, exclude=message.exclude, idempotency_key=message.idempotency_key
                )
                for name, message in kept
            )
        if not is_manual(connections[using]):
            names = sorted({name for name, _ in kept})
            failed = partial(self._not_numbered, names)
            call_after_commit(partial(self._number_after_commit, names), [using], failed=failed)

    def _number_after_commit(self, names: Collection[str]) -> None:
        self.number_outbox(names)

    def _not_numbered(self, names: Collection[str], error: Exception) -> None:
        # They are stored: the next append or poll numbers them.
        logger.warning("Broadcasts were committed, but not numbered yet: %s", ", ".join(names), exc_info=error)

    def number_outbox(self, streams: Collection[str] | None = None) -> None:
        """Number the committed messages that wait, of some streams or of all.

        Raises:
            BroadcastError: some could not be numbered; they go on waiting.
        """
        failure: BroadcastError | None = None
        with self._database.broadcast_errors():
            waiting = self._database.read(partial(self._waiting, streams))
        for name in waiting:
            try:
                self._append([name], ())
            except BroadcastError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _waiting(self, streams: Collection[str] | None = None) -> list[str]:
        rows = self._database.rows(models.OutboxEntry)
        if streams is not None:
            rows = rows.filter(name__in=streams)
        return list(rows.order_by("name").values_list("name", flat=True).distinct()[:BATCH])

    def _append(self, names: Sequence[str], items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        with self._database.broadcast_errors():
            self._server.prepare()
        while True:
            written = self._database.store(partial(self._write, names, items))
            if written is None:
                # In a transaction of its own: a new row locked among others could end in a deadlock.
                self._database.store(partial(self._create, names))
                continue
            self._announce(written.events)
            self._retention.trim_soon(written.overfull)
            if written.complete:
                return written.positions

    def _create(self, names: Sequence[str]) -> None:
        rows = [models.Stream(name=name, epoch=secrets.token_hex(8)) for name in names]
        self._database.rows(models.Stream).bulk_create(rows, ignore_conflicts=True)

    def _write(self, names: Sequence[str], items: Sequence[tuple[str, Message]]) -> _Written | None:
        """Lock the streams, number their outbox rows, then store `items`; None if a stream's row is missing.

        Streams whose epochs belong to another lineage of the database are deleted instead.
        """
        waits = models.OutboxEntry.objects.filter(name=OuterRef("name"))
        locked = self._database.rows(models.Stream).select_for_update().filter(name__in=names).order_by("name")
        streams: dict[str, models.Stream] = {}
        waiting: list[str] = []
        ended: list[str] = []
        now = 0.0
        for stream in locked.annotate(waits=Exists(waits), now=self._server.now(), present=self._server.lineage()):
            streams[stream.name] = stream
            now = max(now, stream.now)
            if stream.waits:
                waiting.append(stream.name)
            if stream.tail == 0:
                # An epoch begins with its first entry: a restored database may have the row without the entries.
                stream.epoch = secrets.token_hex(8)
            elif stream.present and stream.lineage not in ("", stream.present):
                ended.append(stream.name)
            stream.lineage = stream.present or stream.lineage
        if len(streams) < len(names):
            return None
        if ended:
            # The database may lack entries that this epoch has numbered: their offsets must not be used again.
            self._database.rows(models.Stream).filter(name__in=ended).delete()
            return _Written([], [Advanced(name) for name in ended], (), complete=False)
        rows = []
        if waiting:
            # Read under the lock: another process that numbered them has deleted them.
            rows = list(self._database.rows(models.OutboxEntry).filter(name__in=waiting).order_by("id")[:BATCH])
        complete = len(rows) < BATCH
        batch = [(row.name, Message(row.data, row.exclude, row.idempotency_key)) for row in rows]
        tails = {name: stream.tail for name, stream in streams.items()}
        overfull = {name for name, stream in streams.items() if self._retention.has_expired(stream, now)}
        positions, events = self._numbering.insert(streams, [*batch, *items] if complete else batch, now)
        if rows:
            self._database.rows(models.OutboxEntry).filter(pk__in=[row.pk for row in rows]).delete()
        overfull |= {name for name, stream in streams.items() if self._retention.has_grown(stream, tails[name])}
        return _Written(positions[len(rows) :], events, overfull, complete)

    # -- reading ------------------------------------------------------------------------------------------------------

    @repeated_read
    def read(
        self, stream: str, *, after: int, limit: int, known: StreamPosition | None = None, following: bool = False
    ) -> StreamPage:
        """Return up to `limit` kept entries with greater offsets than `after`, and the stream's state."""
        policy = self.settings.policy(stream)
        alive = self._entries(OuterRef("pk")).filter(created__gt=self._server.ago(policy.history_ttl))
        oldest = Subquery(alive.order_by("created", "offset").values("offset")[:1])
        with self._database.read_errors(f"The stream {stream!r} cannot be read"):
            row = self._database.rows(models.Stream).filter(name=stream, tail__gt=0).annotate(oldest=oldest).first()
            if row is None:
                return StreamPage("", 0, 1)
            low = row.low
            if not following:
                low = max(low, row.tail - policy.history_size + 1, row.tail + 1 if row.oldest is None else row.oldest)
            start = max(after + 1, low)
            if limit <= 0 or start > row.tail:
                return StreamPage(row.epoch, row.tail, low)
            kept = self._entries(row.pk).filter(offset__gte=start, offset__lte=row.tail).order_by("offset")
            entries = [Entry(*values) for values in kept.values_list("offset", "data", "exclude")[:limit]]
        first = entries[0].offset if entries else row.tail + 1
        # More was trimmed since the stream's row was read.
        return StreamPage(row.epoch, row.tail, low if first == start else first, entries)

    @repeated_read
    def position(self, stream: str) -> StreamPosition:
        """Return the position of the stream's newest message: `("", 0)` if it never had any."""
        with self._database.read_errors(f"The stream {stream!r} cannot be read"):
            found = self._tails([stream])
        return found.get(stream, StreamPosition("", 0))

    @repeated_read
    def offset_since(self, stream: str, since: float) -> int | None:
        """Return the offset after which lies everything appended at or after `since`; None if some of it is gone."""
        policy = self.settings.policy(stream)
        later = self._entries(OuterRef("pk")).filter(created__gte=since).order_by("created", "offset")
        # One statement, so that no append and no trim comes between the tail and the entry.
        query = self._database.rows(models.Stream).filter(name=stream, tail__gt=0)
        with self._database.read_errors(f"The stream {stream!r} cannot be read"):
            row = query.annotate(
                first=Subquery(later.values("offset")[:1]),
                created=Subquery(later.values("created")[:1]),
                now=self._server.now(),
            ).first()
        if row is None:
            return 0
        if row.low > 1 and row.trimmed_at >= since:
            return None
        if row.first is None:
            return row.tail
        if row.created <= row.now - policy.history_ttl or row.first <= row.tail - policy.history_size:
            return None
        return int(row.first) - 1

    def _entries(self, stream: int | OuterRef) -> QuerySet[models.StreamEntry]:
        return self._database.rows(models.StreamEntry).filter(stream=stream)

    # -- announcing ---------------------------------------------------------------------------------------------------

    def _announce_and_wake(self, events: Sequence[StreamEvent]) -> None:
        self.bus.publish(events)
        self._waker.wake(self.origin, {event.stream for event in events})

    def publish_transient(self, stream: str, message: Message) -> None:
        """Announce a message that is not kept: here at once, to other processes through a row they find soon."""
        self._database.outside(partial(self._insert_transient, stream, message))
        self._announce([Transient(stream, message.data, message.exclude)])
        now = self.clock()
        if abs(now - self._swept) > SWEEP_INTERVAL:
            self._swept = now
            self._database.later(self._retention.delete_transients)

    def _insert_transient(self, stream: str, message: Message) -> None:
        def insert() -> None:
            self._database.rows(models.TransientEntry).create(
                name=stream, data=message.data, exclude=message.exclude, origin=self.origin, created=self._server.now()
            )

        self._database.store(insert)

    def whisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper, in this process only: whispers are many, and losing one is harmless."""
        self.bus.publish([Transient(stream, message.data, message.exclude)])

    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        """Return a listener that hands events to `deliver`, on the event loop that calls this."""
        return PollingListener(self, self.bus, deliver)

    @repeated_read
    def poll(self, streams: Collection[str], seen: SeenIds) -> Poll:
        """Look at the tables on behalf of a listener: at idle, a query for each.

        Raises:
            StoreError: the database could not be read.
        """
        with self._database.read_errors("The database cannot be polled"):
            tails = self._tails(streams)
            rows = self._database.rows(models.TransientEntry)
            with seen.lock:
                origins = dict(rows.filter(pk__gt=seen.horizon).order_by("pk").values_list("pk", "origin"))
                fresh = [pk for pk in seen.add(origins) if origins[pk] != self.origin]
            transients = [
                Transient(*values)
                for start in range(0, len(fresh), BATCH)
                for values in rows.filter(pk__in=fresh[start : start + BATCH])
                .order_by("pk")
                .values_list("name", "data", "exclude")
            ]
            return Poll(tails, transients, self._waiting())

    def _tails(self, streams: Collection[str]) -> dict[str, StreamPosition]:
        names = list(streams)
        rows = self._database.rows(models.Stream).filter(tail__gt=0)
        return {
            name: StreamPosition(epoch, tail)
            for start in range(0, len(names), BATCH)
            for name, epoch, tail in rows.filter(name__in=names[start : start + BATCH]).values_list(
                "name", "epoch", "tail"
            )
        }

    # -- deleting -----------------------------------------------------------------------------------------------------

    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch: at once, outside of the caller's transaction."""
        self._database.outside(partial(self._forget, stream, epoch))

    def _forget(self, stream: str, epoch: str) -> None:
        def delete() -> bool:
            row = self._database.rows(models.Stream).select_for_update().filter(name=stream).first()
            if row is None or epoch not in ("", row.epoch):
                return False
            row.delete()
            return True

        if not epoch:
            self.number_outbox([stream])
        with self._database.read_errors(f"The stream {stream!r} cannot be forgotten"):
            gone = self._database.write(delete)
        if gone:
            self._announce([Advanced(stream)])

    def forget_all(self) -> int:
        """End the epoch of every stream, outside of the caller's transaction; return how many there were."""
        return self._database.outside(self._forget_all)

    def _forget_all(self) -> int:
        count = 0
        with self._database.read_errors("The streams cannot be forgotten"):
            for names in self._retention.forget_all():
                self._announce([Advanced(name) for name in names])
                count += len(names)
        return count

    @repeated_read
    def time(self) -> float:
        """Return the present time by the database server's clock on PostgreSQL, by this host's on SQLite."""
        with self._database.read_errors("The time cannot be read"):
            return self._server.time()

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clock of the database, on PostgreSQL."""
        return {f"database {self.settings.database!r}": self.time} if self._server.has_clock else {}

    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` rows that are past their time; return how many went."""
        with self._database.read_errors("The streams cannot be pruned"):
            return self._retention.prune(limit)

    def close(self) -> None:
        """End the thread that wakes other processes, if there is one."""
        self._waker.close()

    async def _run(self, call: Callable[[], T]) -> T:
        return await run_store(call)

    async def _run_write(self, call: Callable[[], T]) -> T:
        return await run_store_write(call)
