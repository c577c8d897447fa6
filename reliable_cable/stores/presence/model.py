"""The presence store in the project's own database, SQLite or PostgreSQL."""

import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any, Final, TypeVar

from django.db.models import Count, Exists, OuterRef, Q, QuerySet

from reliable_cable.concurrency.batching import Batches, Outcome
from reliable_cable.conf import CableSettings
from reliable_cable.models import PresenceEntry, PresenceSession, PresenceStream
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.base import async_twin
from reliable_cable.stores.bus import Bus
from reliable_cable.stores.database.database import ROWS_PER_TRANSACTION
from reliable_cable.stores.database.shared_receiver import PRESENCE
from reliable_cable.stores.database.store import ModelStore, retried_read
from reliable_cable.stores.streams.base import StreamEvent
from reliable_cable.stores.streams.model_announcer import Announcer
from reliable_cable.stores.streams.wakeup import Waker

from .base import Member, PresenceEvent, PresenceInfo, PresenceStore, Refreshed
from .model_changes import (
    KEYS_PER_QUERY,
    USED_INTERVAL,
    Change,
    Join,
    Leave,
    PresenceChanges,
    Written,
    presence_key,
)
from .model_events import EventReader, NewEvents
from .model_listener import Deliver, ModelPresenceListener, pack
from .model_sweeps import Sweeps

T = TypeVar("T")

#: The maximum number of joins and leaves in one transaction.
CHANGES_PER_TRANSACTION: Final = 200
#: The maximum number of streams whose expired sessions one transaction removes.
STREAMS_PER_SWEEP: Final = 100
#: The maximum number of transactions in each `expire`. Sessions that remain are removed by the next `expire`.
EXPIRE_ROUNDS: Final = 50


class ModelPresenceStore(ModelStore, PresenceStore):
    """Stores the members of streams in the models `Presence…`, in the database `settings.database`.

    An expired session is still present, and can be refreshed, until a process calls `expire`. Joins and leaves insert
    numbered events in their transaction. Listeners of this process get them after the commit, and those of other
    processes after a notification (on PostgreSQL), a wake-up or a poll. On PostgreSQL, the tables are unlogged, so a
    crash of the server empties them.

    If the caller has an open transaction, changes are made by a thread with another database connection.

    Args:
        settings: the settings; `database`, `notify`, `poll_interval`, `presence_ttl`, `presence_grace` and
            `sessions_ttl` are used.
        clock: a clock for tests, which returns seconds since 1970. It replaces the server's or this host's clock.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock)
        self._events = EventReader(self._database)
        self._sweeps = Sweeps(self._database, self._server, outage=self.outage, grace=settings.presence_ttl)
        self._changes = PresenceChanges(self._database, settings, self._server, self._sweeps)
        # Simultaneous joins and leaves of an event loop share transactions.
        self._change_batches: Batches[Sequence[Change], list[PresenceEvent]] = Batches(self._change_batch, parallel=1)
        self._shorten_batches: Batches[str, None] = Batches(self._shorten_batch, size=KEYS_PER_QUERY, parallel=1)
        #: The bus that announces events to the listeners of this process.
        self.bus: Bus[StreamEvent] = Bus()
        self._waker = Waker()
        self._id = secrets.token_hex(8)
        self._announcer = Announcer(settings, lambda: self.origin, topic=PRESENCE)

    @property
    def origin(self) -> str:
        """A name of this store that is unique to this process. In a forked child, the store has another name."""
        return f"{self._id}.{os.getpid()}"

    # -- joining and leaving ------------------------------------------------------------------------------------------

    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Add sessions, or refresh them."""
        return _flat(self._change([Join.of(member) for member in members]))

    async def ajoin_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Async version of `join_all`. Simultaneous calls share transactions."""
        return await self._achange([Join.of(member) for member in members])

    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Remove a session."""
        return _flat(self._change([Leave(stream, presence_key(stream, session))]))

    async def aleave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Async version of `leave`. Simultaneous calls share transactions."""
        return await self._achange([Leave(stream, presence_key(stream, session))])

    async def _achange(self, changes: Sequence[Change]) -> list[PresenceEvent]:
        if self._in_threads:
            return await self._change_batches(changes)
        return _flat(await self._run_write(partial(self._change, changes)))

    async def _change_batch(self, requests: Sequence[Sequence[Change]]) -> list[Outcome[list[PresenceEvent]]]:
        changes = [change for request in requests for change in request]
        caused = iter(await self._run_write(partial(self._change, changes)))
        return [(_flat(islice(caused, len(request))), None) for request in requests]

    def _change(self, changes: Sequence[Change]) -> list[Sequence[PresenceEvent]]:
        """Make changes in their order, and return the events that each of them has caused."""
        return self._database.outside(partial(self._change_now, changes)) if changes else []

    def _change_now(self, changes: Sequence[Change]) -> list[Sequence[PresenceEvent]]:
        caused: list[Sequence[PresenceEvent]] = []
        with self._errors("changed"):
            self._server.prepare()
            for start in range(0, len(changes), CHANGES_PER_TRANSACTION):
                some = changes[start : start + CHANGES_PER_TRANSACTION]
                while (written := self._database.write(partial(self._changes.apply, some))) is None:
                    # The rows of new streams are inserted in a separate transaction, because locks on these rows could
                    # cause a deadlock.
                    self._create({change.stream for change in some if isinstance(change, Join)})
                self._announce(written)
                caused += written.caused
        return caused

    def _create(self, streams: Collection[str]) -> None:
        self._database.write(partial(self._changes.create, streams))

    def _announce(self, written: Written) -> None:
        events = [pack(announcement) for announcement in written.announcements]
        if events:
            self.bus.publish(events)
            self._waker.wake(self.origin, {event.stream for event in events})
            self._announcer.announce(events)

    # -- expiring -----------------------------------------------------------------------------------------------------

    def shorten(self, stream: str, session: str) -> None:
        """Let a session expire after `settings.presence_grace` seconds, unless it expires earlier."""
        self._shorten([presence_key(stream, session)])

    async def ashorten(self, stream: str, session: str) -> None:
        """Async version of `shorten`. Simultaneous calls share an UPDATE."""
        key = presence_key(stream, session)
        if self._in_threads:
            await self._shorten_batches(key)
        else:
            await self._run_write(partial(self._shorten, [key]))

    async def _shorten_batch(self, keys: Sequence[str]) -> list[Outcome[None]]:
        await self._run_write(partial(self._shorten, keys))
        return [(None, None)] * len(keys)

    def _shorten(self, keys: Collection[str]) -> None:
        deadline = self._server.ago(-self.settings.presence_grace)
        sessions = self._locked(keys).filter(expires__gt=deadline)
        self._write("changed", lambda: self._sessions.filter(key__in=sessions).update(expires=deadline))

    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Renew the TTL of sessions, with one UPDATE for each `KEYS_PER_QUERY` sessions."""
        keys = {presence_key(stream, name): (stream, name) for stream, names in held.items() for name in names}
        incarnations = self._database.outside(partial(self._begin, list(held)))
        unknown: set[str] = set()
        ordered = sorted(keys)
        for start in range(0, len(ordered), KEYS_PER_QUERY):
            some = ordered[start : start + KEYS_PER_QUERY]
            unknown |= self._write("refreshed", partial(self._renew, some))
        return Refreshed([pair for key, pair in keys.items() if key in unknown], incarnations)

    async def arefresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Async version of `refresh`. If nothing must be written, it usually does not wait for other writers."""
        if len(held) <= KEYS_PER_QUERY and not any(held.values()):
            found, old = await self._run(partial(self._read_known, list(held)))
            if found.keys() == set(held) and not old:
                return Refreshed([], found)
        return await self._run_write(partial(self.refresh, held))

    @retried_read
    def _read_known(self, names: Sequence[str]) -> tuple[dict[str, str], set[str]]:
        with self._errors("read"):
            self._server.prepare()
            return self._changes.incarnations(names)

    def _renew(self, keys: Sequence[str]) -> set[str]:
        """Renew the TTL of sessions, and return the keys of the sessions that do not exist."""
        expires = self._server.ago(-self.settings.presence_ttl)
        if self._sessions.filter(key__in=self._locked(keys)).update(expires=expires) == len(keys):
            return set()
        return set(keys) - set(self._sessions.filter(key__in=keys).values_list("key", flat=True))

    def _begin(self, streams: Sequence[str]) -> dict[str, str]:
        """Return the incarnations of streams. Begin a new incarnation for each stream that has none."""
        incarnations: dict[str, str] = {}
        with self._errors("refreshed"):
            self._server.prepare()
            for start in range(0, len(streams), KEYS_PER_QUERY):
                names = streams[start : start + KEYS_PER_QUERY]
                found, old = self._changes.incarnations(names)
                missing = set(names) - found.keys()
                if missing - old:
                    self._create(missing - old)
                if old:
                    self._database.write(partial(self._changes.renew, old))
                if missing:
                    found = self._changes.incarnations(names)[0]
                incarnations |= found
        return incarnations

    def expire(self) -> list[PresenceEvent]:
        """Remove the expired sessions of all streams, including those of other processes."""
        return self._database.outside(self._expire)

    def _expire(self) -> list[PresenceEvent]:
        events: list[PresenceEvent] = []
        overdue = self._sessions.filter(expires__lte=self._server.ago(0))
        with self._errors("removed"):
            if not self._sweeps.may_expire():
                return []
            # This query reads all sessions, so it is executed only once.
            streams = self._streams.filter(pk__in=overdue.values("stream")).order_by("name")
            names = list(streams.values_list("name", flat=True)[: STREAMS_PER_SWEEP * EXPIRE_ROUNDS])
            for _ in range(EXPIRE_ROUNDS):
                if not names:
                    break
                self._server.prepare()
                some = names[:STREAMS_PER_SWEEP]
                written = self._database.write(partial(self._changes.expire, some, CHANGES_PER_TRANSACTION))
                self._announce(written)
                events += _flat(written.caused)
                if len(written.caused) < CHANGES_PER_TRANSACTION:
                    del names[:STREAMS_PER_SWEEP]
        return events

    # -- reading ------------------------------------------------------------------------------------------------------

    @retried_read
    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Return the members of a stream."""
        with self._errors("read"):
            self._server.prepare()
            row: Any = self._streams.filter(name=stream).annotate(ended=self._server.is_foreign("lineage")).first()
            if row is None:
                return PresenceInfo(0, {} if records else None)
            incarnation = "" if row.ended else row.incarnation
            sessions = self._sessions.filter(stream=row.pk)
            present = Q() if overdue else Q(expires__gt=self._server.ago(0))
            if not records:
                total = sessions.filter(present).aggregate(total=Count("member_key", distinct=True))["total"]
                return PresenceInfo(total, None, incarnation)
            alive = None if overdue else set(sessions.filter(present).values_list("member_key", flat=True))
            rows = sessions.order_by("number").values_list("member_key", "member_number", "member", "info")
            members: dict[str, tuple[int, str, str]] = {}
            for key, number, id_, info in rows:
                if alive is None or key in alive:
                    members.setdefault(key, (number, id_, info))
        ordered = sorted(members.values(), key=itemgetter(0))
        infos = {json.loads(id_): json.loads(info) for _, id_, info in ordered}
        return PresenceInfo(len(infos), infos, incarnation)

    @retried_read
    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Return the ids of members that left in the last `seconds` and have not joined again, in order of leaving."""
        present = self._sessions.filter(stream=OuterRef("stream"), member_key=OuterRef("member_key"))
        since = self._server.ago(min(seconds, self.memory))
        with self._errors("read"):
            leaves = self._entries.filter(~Exists(present), stream__name=stream, type="leave", created__gte=since)
            # If a member has left several times, its last leave counts.
            ids = dict.fromkeys(leaves.order_by("-number").values_list("member", flat=True))
        return [json.loads(id_) for id_ in reversed(ids)]

    # -- announcing ---------------------------------------------------------------------------------------------------

    def listen(self, deliver: Deliver) -> ModelPresenceListener:
        """Return a listener that calls `deliver` with events on the running event loop."""
        return ModelPresenceListener(self, deliver, self._announcer)

    @retried_read
    def newest(self) -> int:
        """Return the highest id of an event of any stream; 0 if there is none.

        Raises:
            StoreError: the database could not be read.
        """
        with self._errors("read"):
            return self._events.newest()

    @retried_read
    def positions(self, streams: Collection[str]) -> dict[str, StreamPosition]:
        """Return the incarnation and the number of the newest event of streams, by name.

        Raises:
            StoreError: the database could not be read.
        """
        with self._errors("read"):
            return self._events.positions(streams)

    @retried_read
    def read_events(self, positions: Mapping[str, StreamPosition]) -> dict[str, NewEvents]:
        """Return the events of each stream after its position in `positions`. Leave out streams without a row."""
        with self._errors("read"):
            return self._events.read(positions)

    aread_events = async_twin(read_events)

    def end_incarnation(self, stream: str, incarnation: str) -> None:
        """Begin a new incarnation of all streams, if the given stream still has the given incarnation.

        A listener calls this if the stream has fewer events than were announced, which happens if an SQLite file is
        replaced by a backup.
        """

        def renew() -> None:
            if self._streams.select_for_update().filter(name=stream, incarnation=incarnation).first() is not None:
                self._streams.update(incarnation=secrets.token_hex(8))

        self._write("changed", renew)

    aend_incarnation = async_twin(end_incarnation, writes=True)

    # -- deleting -----------------------------------------------------------------------------------------------------

    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` old events, and streams that have had no members for some time.

        Rows that another process is changing or deleting are skipped.
        """
        used = self._server.ago(self.settings.presence_ttl + self.memory + 2 * USED_INTERVAL)
        unused = self._streams.filter(~Exists(self._sessions.filter(stream=OuterRef("pk"))), used_at__lt=used)
        limit = min(limit, ROWS_PER_TRANSACTION)
        # Only the oldest rows are examined, so that no index of times is needed.
        oldest = self._entries.order_by("pk").values("pk")[:limit]
        old = self._entries.filter(pk__in=oldest, created__lt=self._server.ago(self.memory))

        def delete_entries() -> int:
            ids = list(old.select_for_update(skip_locked=True).values_list("pk", flat=True))
            self._entries.filter(pk__in=ids).delete()
            return len(ids)

        def delete_streams() -> int:
            rows = unused.select_for_update(skip_locked=True).order_by("name")
            ids = list(rows.values_list("pk", flat=True)[:limit])
            self._entries.filter(stream__in=ids).delete()
            self._streams.filter(pk__in=ids)._raw_delete(self._database.alias)
            return len(ids)

        return self._write("pruned", delete_entries) + self._write("pruned", delete_streams)

    def close(self) -> None:
        """Stop the thread that wakes other processes, if it is running."""
        self._waker.close()

    # -- queries ------------------------------------------------------------------------------------------------------

    def _write(self, action: str, call: Callable[[], T]) -> T:
        def write() -> T:
            with self._errors(action):
                return self._database.write(call)

        return self._database.outside(write)

    def _errors(self, action: str) -> AbstractContextManager[None]:
        return self._database.store_errors(f"Members could not be {action}")

    def _locked(self, keys: Collection[str]) -> QuerySet[PresenceSession, str]:
        """Return a subquery that locks sessions in the order of their keys, which joins and leaves also use."""
        return self._sessions.select_for_update().filter(key__in=keys).order_by("key").values_list("key", flat=True)

    @property
    def _streams(self) -> QuerySet[PresenceStream]:
        return self._database.rows(PresenceStream)

    @property
    def _sessions(self) -> QuerySet[PresenceSession]:
        return self._database.rows(PresenceSession)

    @property
    def _entries(self) -> QuerySet[PresenceEntry]:
        return self._database.rows(PresenceEntry)

    aexpire = async_twin(expire, writes=True)


def _flat(caused: Iterable[Sequence[PresenceEvent]]) -> list[PresenceEvent]:
    return [event for events in caused for event in events]
