"""The stream store in the project's own database, SQLite or PostgreSQL."""

import os
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial

from django.db import connections
from django.db.models import OuterRef, Subquery

from reliable_cable import models
from reliable_cable.concurrency.batching import Batches, Outcome
from reliable_cable.concurrency.on_commit import call_after_commit, in_transaction, runs_hooks
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain
from reliable_cable.logs import logger
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.stores.bus import Bus
from reliable_cable.stores.database.prepared import StaleStatementError
from reliable_cable.stores.database.store import ModelStore, retried_read

from .base import LONG_AGO, NOWHERE, Advanced, Message, StreamEvent, StreamListener, StreamStore, Transient
from .model_announcer import Announcer
from .model_lineage import Lineages
from .model_notices import StoredTransient
from .model_numbering import Numbering, Written
from .model_polling import Poll, PollingListener, SeenIds
from .model_reading import PageReader, PageRequest
from .model_retention import EXISTS, Retention
from .model_single_append import SingleAppend
from .model_transients import TransientTable
from .wakeup import Waker

#: The maximum number of names of streams, or ids of rows, in a query.
NAMES_PER_QUERY = 500


class ModelStreamStore(ModelStore, StreamStore):
    """Stores streams in the tables of `reliable_cable.models`, in the database `settings.database`.

    `append` numbers messages in a short transaction of its own, which locks the rows of the streams. `append_on_commit`
    inserts messages into the transactional outbox in the caller's transaction, without a lock. After the commit, these
    messages are numbered by an `on_commit` hook, by the next append, or by the next poll of any process.

    Args:
        settings: the settings; `database` and the history settings of the streams are used.
        clock: a clock for tests, which returns seconds since 1970. It replaces the server's or this host's clock.
        announce: a function that is called with the events after each commit, even one with an uncertain outcome. By
            default, the events are passed to the listeners of this process, and other processes get a wake-up and a
            notification.
    """

    supports_durable = True

    def __init__(
        self,
        settings: CableSettings,
        *,
        clock: Callable[[], float] | None = None,
        announce: Callable[[Sequence[StreamEvent]], None] | None = None,
    ) -> None:
        super().__init__(settings, clock=clock)
        self._announce = announce or self._announce_and_wake
        self._retention = Retention(self._database, settings, self._server)
        self._lineages = Lineages(self._database, self._server)
        self._reader = PageReader(self._database, settings, self._server, self._lineages)
        self._batches: Batches[PageRequest, StreamPage] = Batches(self._read_batch)
        self._numbering = Numbering(self._database, settings, self._server, self._retention)
        self._single_append = SingleAppend(self._database, settings, self._server, self._retention)
        #: The bus that announces events to the listeners of this process.
        self.bus: Bus[StreamEvent] = Bus()
        self._waker = Waker()
        self._id = secrets.token_hex(8)
        self._transients = TransientTable(
            self._database, self._server, self._retention, lambda: self.origin, self.clock
        )
        self._announcer = Announcer(settings, lambda: self.origin, self._transients.store_whispers)

    @property
    def origin(self) -> str:
        """A name of this store that is unique to this process. In a forked child, the store has another name."""
        return f"{self._id}.{os.getpid()}"

    # -- appending ----------------------------------------------------------------------------------------------------

    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, announce them, and return their positions. Either all messages are stored, or none.

        If the caller has an open transaction, the messages are stored by a thread with another database connection.
        """
        items = tuple(items)
        if not items:
            return []
        names = sorted({name for name, _ in items})
        self.require_history(names)
        return self._database.outside(partial(self._append, names, items), BroadcastError)

    def append_on_commit(self, items: Sequence[tuple[str, Message]], using: str) -> None:
        """Store messages if the open transaction on the database `using` commits.

        If `using` is `settings.database`, the messages are inserted into the outbox in the transaction itself. An
        `on_commit` hook numbers them. If Django runs no hooks for the transaction (`set_autocommit(False)`), the next
        append or poll after the commit numbers them.
        """
        names = sorted({name for name, _ in items})
        self.require_history(names)
        if using != self.settings.database:
            super().append_on_commit(items, using)
            return
        with self._database.broadcast_errors():
            self._database.rows(models.OutboxEntry).bulk_create(
                models.OutboxEntry(
                    name=name, data=message.data, exclude=message.exclude, idempotency_key=message.idempotency_key
                )
                for name, message in items
            )
        if runs_hooks(connections[using]):
            failed = partial(self._not_numbered, names)
            call_after_commit(partial(self._number_after_commit, names), [using], failed=failed)

    def _number_after_commit(self, names: Collection[str]) -> None:
        self.number_outbox(names)

    def _not_numbered(self, names: Collection[str], error: Exception) -> None:
        logger.warning(
            "Broadcasts to the streams %s were committed, but could not be numbered. The next append or poll numbers "
            "them.",
            ", ".join(names),
            exc_info=error,
        )

    def number_outbox(self, streams: Collection[str] | None = None) -> None:
        """Number the committed messages in the outbox.

        Args:
            streams: the names of the streams whose messages are numbered. None means all streams.

        Raises:
            BroadcastError: some messages could not be numbered. They remain in the outbox.
        """
        failure: BroadcastError | None = None
        with self._database.broadcast_errors():
            pending = self._database.read(partial(self._numbering.pending, streams))
        for name in pending:
            try:
                self._append([name], ())
            except BroadcastError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _append(self, names: Sequence[str], items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        with self._database.broadcast_errors():
            self._lineages.prepare()
        written = None
        if len(items) == 1 and self._single_append.supports(items[0][1]):
            with suppress(StaleStatementError):
                append = partial(self._single_append.write, *items[0])
                written = self._write(names, partial(self._database.write_statement, append))
        while True:
            number = partial(self._numbering.write, names, items)
            written = written or self._write(names, partial(self._database.write, number))
            if written is None:
                # The rows of new streams are inserted in a separate transaction, because locks on these rows could
                # cause a deadlock.
                self._database.write_broadcast(partial(self._numbering.create, names))
                continue
            self._announce(written.events)
            self._retention.trim_soon(written.overfull)
            if written.complete:
                return written.positions
            written = None

    def _write(self, names: Sequence[str], write: Callable[[], Written | None]) -> Written | None:
        """Write to streams. If the outcome is uncertain, make the listeners read these streams."""
        try:
            with self._database.broadcast_errors():
                return write()
        except BroadcastUncertain:
            self._announce([Advanced(name) for name in names])
            raise

    # -- reading ------------------------------------------------------------------------------------------------------

    @retried_read
    def read(
        self,
        stream: str,
        *,
        after: int,
        limit: int,
        max_size: int | None = None,
        known: StreamPosition | None = None,
        following: bool = False,
    ) -> StreamPage:
        """Return up to `limit` stored entries whose offsets are greater than `after`, and the stream's state."""
        return self._reader.read([PageRequest(stream, after, limit, max_size, following)])[0]

    async def aread(
        self,
        stream: str,
        *,
        after: int,
        limit: int,
        max_size: int | None = None,
        known: StreamPosition | None = None,
        following: bool = False,
    ) -> StreamPage:
        """Async version of `read`. Simultaneous reads share queries and one call in a thread."""
        request = PageRequest(stream, after, limit, max_size, following)
        return await self._batches(request) if self._in_threads else (await self._read_pages([request]))[0]

    async def _read_batch(self, requests: Sequence[PageRequest]) -> list[Outcome[StreamPage]]:
        return [(page, None) for page in await self._read_pages(requests)]

    async def _read_pages(self, requests: Sequence[PageRequest]) -> list[StreamPage]:
        return await self._run(partial(self._database.read, partial(self._reader.read, requests)))

    async def alineage(self, *, durable: bool = False) -> str:
        """Return the id of the database's data set (the lineage). On SQLite, this takes no query."""
        return await self._run(self._read_lineage)

    @retried_read
    def _read_lineage(self) -> str:
        with self._database.store_errors("The lineage of the database cannot be read"):
            self._lineages.prepare()
            return self._server.read_lineage()

    @retried_read
    def position(self, stream: str) -> StreamPosition:
        """Return the position of the stream's newest message; `("", 0)` if the stream does not exist."""
        with self._database.store_errors(f"The stream {stream!r} cannot be read"):
            return self._tails([stream]).get(stream, NOWHERE)

    async def apositions(self, streams: Collection[str]) -> list[StreamPosition]:
        """Return the positions of several streams. Each query reads up to `NAMES_PER_QUERY` positions."""
        tails = await self._run(partial(self.tails, streams))
        return [tails.get(stream, NOWHERE) for stream in streams]

    @retried_read
    def tails(self, streams: Collection[str]) -> dict[str, StreamPosition]:
        """Return the positions of streams, by name. Streams that do not exist are left out.

        Each query reads up to `NAMES_PER_QUERY` positions.

        Raises:
            StoreError: the database could not be read.
        """
        with self._database.store_errors("The positions of streams cannot be read"):
            return self._tails(streams)

    @retried_read
    def offset_since(self, stream: str, since: float) -> int | None:
        """Return the offset of the last message before a time; None if some of the messages since then are gone."""
        policy = self.settings.policy(stream)
        later = self._reader.entries(OuterRef("pk")).filter(created__gte=since).order_by("created", "offset")
        # The tail and the first entry since the time are read by one statement, so that no append and no trim can
        # happen between two reads.
        query = self._database.rows(models.Stream).filter(EXISTS, name=stream)
        with self._database.store_errors(f"The stream {stream!r} cannot be read"):
            row = query.annotate(
                first=Subquery(later.values("offset")[:1]),
                created=Subquery(later.values("created")[:1]),
                now=self._server.now(),
                ended=self._lineages.ended(),
            ).first()
            began = self._lineages.began()
            if LONG_AGO < since < began:
                return None
            if row is None:
                deleted_after = self.deleted_after(stream)
                return None if deleted_after is not None and since < self._server.time() - deleted_after else 0
        if row.ended:
            # A failover or a restored backup has ended the stream's epoch. Messages from before `began` may be lost.
            return 0 if 0 < began <= since else None
        if row.trimmed_at >= since and (row.low > 1 or since > LONG_AGO):
            return None
        if row.first is None:
            return row.tail
        if row.created <= row.now - policy.history_ttl or row.first <= row.tail - policy.history_size:
            return None
        return int(row.first) - 1

    # -- announcing ---------------------------------------------------------------------------------------------------

    def _announce_and_wake(self, events: Sequence[StreamEvent]) -> None:
        self.bus.publish(events)
        self._waker.wake(self.origin, {event.stream for event in events})
        # In a transaction of the caller, the messages are not committed yet. Other processes find them when they poll.
        if not in_transaction(connections[self.settings.database]):
            self._announcer.announce(event for event in events if not isinstance(event, Transient))

    def publish_transient(self, stream: str, message: Message) -> None:
        """Announce a message without numbering it.

        Listeners of this process receive the message as soon as it is stored. Other processes receive it in a
        notification, or find it in a table when they poll.
        """
        transient = Transient(stream, message.data, message.exclude)
        key = self._transients.store(transient)
        self._announce([transient])
        self._announcer.announce([StoredTransient(key, transient)])

    def whisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper. A background thread stores it for the other processes."""
        transient = Transient(stream, message.data, message.exclude, whisper=True)
        self.bus.publish([transient])
        self._announcer.whisper(transient)

    async def awhisper(self, stream: str, message: Message) -> None:
        """Async version of `whisper`. It needs no thread."""
        self.whisper(stream, message)

    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        """Return a listener that calls `deliver` with events on the running event loop."""
        return PollingListener(self, self.bus, deliver, announcer=self._announcer)

    @retried_read
    def poll(self, streams: Collection[str], seen: SeenIds) -> Poll:
        """Query the tables for a listener.

        If there is nothing new, and the listener has up to `NAMES_PER_QUERY` streams, each table is queried once.

        Args:
            streams: the names of the listener's streams.
            seen: the transient messages that the listener has already received. The new ones are added.

        Raises:
            StoreError: the database could not be read.
        """
        with self._database.store_errors("The database cannot be polled"):
            tails = self._tails(streams)
            return Poll(tails, self._transients.find_new(seen), self._numbering.pending())

    def _tails(self, streams: Collection[str]) -> dict[str, StreamPosition]:
        names = list(streams)
        rows = self._database.rows(models.Stream).filter(EXISTS).alias(ended=self._lineages.ended()).filter(ended=False)
        return {
            name: StreamPosition(epoch, tail)
            for start in range(0, len(names), NAMES_PER_QUERY)
            for name, epoch, tail in rows.filter(name__in=names[start : start + NAMES_PER_QUERY]).values_list(
                "name", "epoch", "tail"
            )
        }

    # -- deleting -----------------------------------------------------------------------------------------------------

    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch now, outside of the caller's transaction."""
        self._database.outside(partial(self._forget, stream, epoch))

    def _forget(self, stream: str, epoch: str) -> None:
        def delete() -> bool:
            locked = self._retention.with_times(self._database.rows(models.Stream).select_for_update())
            row = locked.filter(name=stream).first()
            if row is None or epoch not in ("", row.epoch):
                return False
            self._retention.end_epochs([row])
            return True

        if not epoch:
            self.number_outbox([stream])
        with self._database.store_errors(f"The stream {stream!r} cannot be forgotten"):
            self._lineages.prepare()
            deleted = self._database.write(delete)
        if deleted:
            self._announce([Advanced(stream)])

    def forget_all(self) -> int:
        """End the epochs of all streams, outside of the caller's transaction, and return the number of streams."""
        return self._database.outside(self._forget_all)

    def _forget_all(self) -> int:
        count = 0
        with self._database.store_errors("The streams cannot be forgotten"):
            self._lineages.prepare()
            self._database.write(self._lineages.renew)
            for names in self._retention.forget_all():
                self._announce([Advanced(name) for name in names])
                count += len(names)
        return count

    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` old database rows, and return how many were deleted."""
        with self._database.store_errors("The streams cannot be pruned"):
            return self._retention.prune(limit)

    def close(self) -> None:
        """Stop the thread that wakes other processes, if it is running."""
        self._waker.close()
