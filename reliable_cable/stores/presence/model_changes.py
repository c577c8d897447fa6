"""Joins and leaves in the tables of presence. Each batch of changes is one transaction."""

import json
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, Literal

from django.db.models import F, Q

from reliable_cable.conf import CableSettings
from reliable_cable.models import PresenceEntry, PresenceSession, PresenceStream
from reliable_cable.stores.database.database import Database
from reliable_cable.stores.database.server import DatabaseServer

from .base import Member, PresenceEvent
from .model_sweeps import Sweeps

#: The maximum number of names of streams, or keys of sessions, in a query.
KEYS_PER_QUERY: Final = 500
#: How old, in seconds, the time `used_at` of a stream may become before it is renewed.
USED_INTERVAL: Final = 60.0


def presence_key(*parts: str) -> str:
    """Return a hash of some strings, which identifies a row. Different strings have different hashes."""
    return blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Join:
    """A session that joins a stream, or joins it again.

    Args:
        stream: the name of the stream.
        key: the key of the session's row.
        member: the id of the member, as JSON text.
        info: the info of the session, as JSON text.
        joined: whether the session has joined before.
        replaces: the key of the row of the session that this session replaces; `""` if there is none.
    """

    stream: str
    key: str
    member: str
    info: str
    joined: bool
    replaces: str

    @classmethod
    def of(cls, member: Member) -> "Join":
        """Return the change for a member.

        Raises:
            TypeError, ValueError: the info is not a JSON value.
        """
        # `json.dumps` escapes all characters beyond ASCII, so even strings that UTF-8 cannot encode can be stored.
        id_, info = json.dumps(member.id), json.dumps(member.info, allow_nan=False)
        replaces = presence_key(member.stream, member.replaces) if member.replaces else ""
        key = presence_key(member.stream, member.session)
        return cls(member.stream, key, id_, info, member.joined, replaces)

    @property
    def member_key(self) -> str:
        """The hash of the member's id."""
        return presence_key(self.member)


@dataclass(frozen=True, slots=True)
class Leave:
    """A session that leaves a stream.

    Args:
        stream: the name of the stream.
        key: the key of the session's row.
    """

    stream: str
    key: str


Change = Join | Leave


@dataclass(frozen=True, slots=True)
class Announcement:
    """An event with its position.

    Args:
        stream: the name of the stream.
        incarnation: the incarnation of the stream's presence data.
        number: the number of the event in the incarnation.
        type: "join" or "leave".
        member: the id of the member, as JSON text.
        info: the info of the member, as JSON text.
    """

    stream: str
    incarnation: str
    number: int
    type: Literal["join", "leave"]
    member: str
    info: str

    @property
    def event(self) -> PresenceEvent:
        """The event. Each call returns a new object, which the receiver may change."""
        return PresenceEvent(self.stream, self.type, json.loads(self.member), json.loads(self.info))


@dataclass(frozen=True, slots=True)
class Written:
    """The result of a transaction.

    Args:
        caused: the events that each change has caused.
        announcements: all events to announce, in their order.
    """

    caused: Sequence[Sequence[PresenceEvent]]
    announcements: Sequence[Announcement]


class PresenceChanges:
    """Changes the members of streams. Call the methods inside a transaction.

    Each transaction first locks the rows of its streams, in the order of their names. So the events of a stream are
    numbered without holes, and there are no deadlocks between changes. The time to live of sessions is renewed without
    these locks. So the rows of sessions are locked, too, in the order of their keys.
    """

    def __init__(self, database: Database, settings: CableSettings, server: DatabaseServer, sweeps: Sweeps) -> None:
        self._database = database
        self._settings = settings
        self._server = server
        self._sweeps = sweeps

    def create(self, streams: Iterable[str]) -> None:
        """Insert rows, with new incarnations, for streams that have none."""
        self._database.rows(PresenceStream).bulk_create(
            [
                PresenceStream(
                    name=name,
                    incarnation=secrets.token_hex(8),
                    lineage=self._server.lineage(),
                    used_at=self._server.now(),
                )
                for name in sorted(streams)
            ],
            ignore_conflicts=True,
        )

    def incarnations(self, names: Sequence[str]) -> tuple[dict[str, str], set[str]]:
        """Return the incarnations of streams, and the names of the streams to renew. No transaction is needed."""
        rows = (
            self._database.rows(PresenceStream)
            .filter(name__in=names)
            .annotate(age=self._server.now() - F("used_at"), ended=self._server.is_foreign("lineage"))
        )
        incarnations: dict[str, str] = {}
        old: set[str] = set()
        for name, incarnation, age, ended in rows.values_list("name", "incarnation", "age", "ended"):
            if ended or age > USED_INTERVAL:
                old.add(name)
            if not ended:
                incarnations[name] = incarnation
        return incarnations, old

    def renew(self, streams: Collection[str]) -> None:
        """Renew `used_at` of streams, and begin new incarnations of streams whose lineage has ended."""
        rows = self.lock(streams)
        for row in rows:
            row.used_at = row.now
        self._database.rows(PresenceStream).bulk_update(rows, ["incarnation", "lineage", "used_at"])

    def apply(self, changes: Sequence[Change]) -> Written | None:
        """Make changes in their order.

        Returns:
            The resulting events; None if a stream that a session joins has no row. In that case, nothing was changed.
        """
        streams = {row.name: row for row in self.lock({change.stream for change in changes})}
        if any(isinstance(change, Join) and change.stream not in streams for change in changes):
            return None
        known = [change for change in changes if change.stream in streams]
        keys = {change.key for change in known} | {change.replaces for change in known if isinstance(change, Join)}
        sessions = self._lock_sessions(Q(key__in=keys))
        batch = _Batch(self._database, self._settings.presence_ttl, streams, sessions)
        batch.load(change for change in known if isinstance(change, Join))
        caused = [batch.apply(change) for change in changes]
        batch.save()
        if any(isinstance(change, Join) and streams[change.stream].unsearched for change in changes):
            # This is the last statement, so that transactions which wait for its lock cannot cause a deadlock.
            self._sweeps.begin()
        return Written(caused, batch.announcements)

    def expire(self, streams: Collection[str], limit: int) -> Written:
        """Remove up to `limit` expired sessions of streams."""
        rows = self.lock(streams)
        expired = Q(stream__in=[row.pk for row in rows], expires__lte=self._server.ago(0))
        sessions = self._lock_sessions(expired, limit)
        batch = _Batch(self._database, self._settings.presence_ttl, {row.name: row for row in rows}, sessions)
        batch.load(())
        caused = [batch.remove(session) for session in sessions]
        batch.save()
        return Written(caused, batch.announcements)

    def lock(self, streams: Collection[str]) -> list[Any]:
        """Lock the rows of streams, and return them with the time as the attribute `now` (see `DatabaseServer.now`).

        The attribute `unsearched` tells whether no search for expired sessions is recorded (see `Sweeps`).

        If the lineage of a row has ended, the row that is returned has a new incarnation, which is not stored yet.
        """
        rows = self._database.rows(PresenceStream).select_for_update().filter(name__in=streams)
        locked: list[Any] = list(
            rows.annotate(
                now=self._server.now(),
                ended=self._server.is_foreign("lineage"),
                present=self._server.lineage(),
                unsearched=self._sweeps.missing,
            ).order_by("name")
        )
        for row in locked:
            row.changed = row.ended or row.used_at < row.now - USED_INTERVAL
            if row.ended:
                row.incarnation, row.lineage = secrets.token_hex(8), row.present
        return locked

    def _lock_sessions(self, condition: Q, limit: int | None = None) -> list[PresenceSession]:
        rows = self._database.rows(PresenceSession).select_for_update().filter(condition).order_by("key")
        return list(rows[:limit])


class _Batch:
    """The rows of one transaction, which are changed in memory, and then saved.

    Args:
        database: the database.
        ttl: the time to live of a session, in seconds.
        streams: the locked rows of the streams, by name.
        sessions: the locked rows of the sessions that the changes concern.
    """

    def __init__(
        self, database: Database, ttl: float, streams: dict[str, Any], sessions: Sequence[PresenceSession]
    ) -> None:
        self._database = database
        self._ttl = ttl
        self._streams = streams
        self._names = {row.pk: name for name, row in streams.items()}
        self._sessions = {session.key: session for session in sessions}
        #: The sessions of each member, by stream and member, in the order of their joins.
        self._members: dict[tuple[int, str], list[PresenceSession]] = defaultdict(list)
        self._joins: list[Join] = []
        self._deleted: set[str] = set()
        self._written: dict[str, PresenceSession] = {}
        self._entries: list[PresenceEntry] = []
        #: The events to announce, in their order.
        self.announcements: list[Announcement] = []

    def load(self, joins: Iterable[Join]) -> None:
        """Read all sessions of the members that the changes concern."""
        self._joins = list(joins)
        member_keys = {session.member_key for session in self._sessions.values()}
        member_keys |= {join.member_key for join in self._joins}
        others = self._database.rows(PresenceSession).filter(stream__in=list(self._names), member_key__in=member_keys)
        for session in others.order_by("number") if member_keys else ():
            # If the session is locked, use the locked row: `others` may be read from an older snapshot.
            row = self._sessions.get(session.key, session)
            self._members[row.stream_id, row.member_key].append(row)

    @cached_property
    def _left(self) -> set[tuple[int, str]]:
        """The streams and members for which a leave is remembered."""
        entries = self._database.rows(PresenceEntry).filter(
            stream__in=list(self._names), member_key__in={join.member_key for join in self._joins}, type="leave"
        )
        return set(entries.values_list("stream", "member_key"))

    def apply(self, change: Change) -> list[PresenceEvent]:
        """Make a change, and return the events that it has caused."""
        if isinstance(change, Join):
            return self._join(change)
        session = self._sessions.get(change.key)
        return self.remove(session) if session is not None else []

    def _join(self, join: Join) -> list[PresenceEvent]:
        stream, member_key = self._streams[join.stream], join.member_key
        events: list[PresenceEvent] = []
        session = self._sessions.get(join.key) or self._rename(join)
        if session is not None and session.member_key != member_key:
            events += self.remove(session)
            session = None
        if session is None:
            sessions = self._members[stream.pk, member_key]
            stream.joins += 1
            stream.changed = True
            session = PresenceSession(
                key=join.key,
                stream_id=stream.pk,
                member_key=member_key,
                member=join.member,
                number=stream.joins,
                member_number=sessions[0].member_number if sessions else stream.joins,
            )
            sessions.append(session)
            self._sessions[join.key] = session
            if len(sessions) == 1:
                event = self._announce("join", stream, session, join.info)
                if not join.joined or (stream.pk, member_key) in self._left:
                    events.append(event)
        session.info = join.info
        session.expires = stream.now + self._ttl
        self._written[join.key] = session
        self._deleted.discard(join.key)
        return events

    def _rename(self, join: Join) -> PresenceSession | None:
        """If a join replaces a session of the same member, give it the join's key and return it; otherwise None."""
        session = self._sessions.get(join.replaces)
        if session is None or session.member_key != join.member_key:
            return None
        self._forget(session)
        session.key = join.key
        self._sessions[join.key] = session
        return session

    def remove(self, session: PresenceSession) -> list[PresenceEvent]:
        """Remove a session, and return the leave event if it was the last one of its member."""
        self._forget(session)
        sessions = self._members[session.stream_id, session.member_key]
        sessions.remove(session)
        if sessions:
            return []
        stream = self._streams[self._names[session.stream_id]]
        return [self._announce("leave", stream, session, session.info)]

    def _forget(self, session: PresenceSession) -> None:
        # The row of the stream is always written, so that a transaction which waits for it fails under REPEATABLE READ.
        # Otherwise, it would read the sessions from a snapshot that still has this one.
        self._streams[self._names[session.stream_id]].changed = True
        del self._sessions[session.key]
        self._written.pop(session.key, None)
        self._deleted.add(session.key)

    def _announce(
        self, type_: Literal["join", "leave"], stream: Any, session: PresenceSession, info: str
    ) -> PresenceEvent:
        stream.tail += 1
        stream.changed = True
        self._entries.append(
            PresenceEntry(
                stream_id=stream.pk,
                number=stream.tail,
                type=type_,
                member_key=session.member_key,
                member=session.member,
                info=info,
                created=stream.now,
            )
        )
        announcement = Announcement(stream.name, stream.incarnation, stream.tail, type_, session.member, info)
        self.announcements.append(announcement)
        return announcement.event

    def save(self) -> None:
        """Write all changed rows."""
        sessions = self._database.rows(PresenceSession)
        if self._deleted:
            sessions.filter(key__in=self._deleted).delete()
        if self._written:
            sessions.bulk_create(
                self._written.values(),
                update_conflicts=True,
                unique_fields=["key"],
                update_fields=["member_key", "member", "info", "number", "member_number", "expires"],
            )
        if self._entries:
            self._database.rows(PresenceEntry).bulk_create(self._entries)
        changed = [row for row in self._streams.values() if row.changed]
        for row in changed:
            row.used_at = row.now
        if changed:
            fields = ["incarnation", "lineage", "tail", "joins", "used_at"]
            self._database.rows(PresenceStream).bulk_update(changed, fields)
