"""Presence in the memory of one process."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal, TypeVar

from reliable_cable.conf import CableSettings

from .base import Member, PresenceEvent, PresenceInfo, PresenceListener, PresenceMissed, PresenceStore, Refreshed

T = TypeVar("T")
Deliver = Callable[[PresenceEvent | PresenceMissed], None]


@dataclass(slots=True)
class _Member:
    info: str  # as JSON text, so that nobody shares its objects
    sessions: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Stream:
    members: dict[str, _Member] = field(default_factory=dict)
    #: When the ids that are gone left, by id.
    left: dict[str, float] = field(default_factory=dict)


class MemoryPresenceStore(PresenceStore):
    """Keeps who is there in dicts; it ends with the process.

    Expired sessions stay present, and can be refreshed, until `expire` removes them.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock=clock)
        self._incarnation = secrets.token_hex(8)
        self._streams: dict[str, _Stream] = {}
        # (stream, session) -> (id, deadline), in the order of deadlines: whatever gets a new one goes to the end.
        self._sessions: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._tombstones: deque[tuple[float, str, str]] = deque()
        #: When `expire` last ran, if sessions remained after it; and the time before which it removes nothing, after an
        #: outage.
        self._swept_at: float | None = None
        self._grace = 0.0
        self._listeners: set[MemoryPresenceListener] = set()
        self._lock = threading.Lock()

    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Add or refresh sessions."""
        texts = [json.dumps(member.info, allow_nan=False) for member in members]
        with self._lock:
            return [event for member, text in zip(members, texts, strict=True) for event in self._join(member, text)]

    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Remove a session."""
        with self._lock:
            return self._remove((stream, session)) if (stream, session) in self._sessions else []

    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Give sessions a new time."""
        unknown: list[tuple[str, str]] = []
        with self._lock:
            deadline = self.clock() + self.settings.presence_ttl
            for key in [(stream, session) for stream, sessions in held.items() for session in sessions]:
                found = self._sessions.get(key)
                if found is None:
                    unknown.append(key)
                else:
                    self._sessions[key] = (found[0], deadline)
                    self._sessions.move_to_end(key)
        return Refreshed(unknown, dict.fromkeys(held, self._incarnation))

    def expire(self) -> list[PresenceEvent]:
        """Remove what is over, and forget who left too long ago."""
        events: list[PresenceEvent] = []
        with self._lock:
            now = self.clock()
            if self._swept_at is not None and now - self._swept_at > self.outage:
                # The process was suspended, with all of its event loops.
                self._grace = now + self.settings.presence_ttl
            if now >= self._grace:
                for key in self._overdue():
                    events += self._remove(key)
            self._swept_at = now if self._sessions else None
            self._forget_left(now)
        return events

    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Return who is there."""
        with self._lock:
            found = self._streams.get(stream)
            members = dict(found.members) if found else {}
            over = set() if overdue else {session for name, session in self._overdue() if name == stream}
            texts = {id_: member.info for id_, member in members.items() if not over or member.sessions - over}
        infos = {id_: json.loads(text) for id_, text in texts.items()} if records else None
        return PresenceInfo(len(texts), infos, self._incarnation)

    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Return who left, in the order in which they did."""
        with self._lock:
            since = self.clock() - min(seconds, self.memory)
            found = self._streams.get(stream)
            return [id_ for id_, left_at in found.left.items() if left_at >= since] if found else []

    def listen(self, deliver: Deliver) -> MemoryPresenceListener:
        """Return a listener that hands events to `deliver`, in the order in which they happened."""
        return MemoryPresenceListener(self._listeners, deliver)

    async def _run(self, call: Callable[[], T]) -> T:
        return call()

    # -- with the lock held -----------------------------------------------------------------------------------------

    def _join(self, member: Member, text: str) -> list[PresenceEvent]:
        events: list[PresenceEvent] = []
        key = (member.stream, member.session)
        former = self._sessions.get(key)
        if former is not None and former[0] != member.id:
            events += self._remove(key)
        self._sessions[key] = (member.id, self.clock() + self.settings.presence_ttl)
        self._sessions.move_to_end(key)
        found = self._streams.setdefault(member.stream, _Stream())
        known = found.members.get(member.id)
        if known is not None:
            known.info = text
        else:
            known = found.members[member.id] = _Member(text)
            had_left = found.left.pop(member.id, None) is not None
            joined = self._emit("join", member.stream, member.id, text)
            events += joined if had_left or not member.joined else []
        known.sessions.add(member.session)
        return events

    def _overdue(self) -> list[tuple[str, str]]:
        now = self.clock()
        return [key for key, _ in takewhile(lambda item: item[1][1] <= now, self._sessions.items())]

    def _remove(self, key: tuple[str, str]) -> list[PresenceEvent]:
        stream, session = key
        id_, _ = self._sessions.pop(key)
        found = self._streams[stream]
        member = found.members[id_]
        member.sessions.discard(session)
        if member.sessions:
            return []
        del found.members[id_]
        now = self.clock()
        found.left[id_] = now
        self._tombstones.append((now, stream, id_))
        self._forget_left(now)
        return self._emit("leave", stream, id_, member.info)

    def _forget_left(self, now: float) -> None:
        while self._tombstones and self._tombstones[0][0] < now - self.memory:
            left_at, stream, id_ = self._tombstones.popleft()
            found = self._streams.get(stream)
            if found is None:
                continue
            # Whoever left again since then has another, later tombstone.
            if found.left.get(id_) == left_at:
                del found.left[id_]
            if not found.left and not found.members:
                del self._streams[stream]

    def _emit(self, type_: Literal["join", "leave"], stream: str, id_: str, info: str) -> list[PresenceEvent]:
        for listener in tuple(self._listeners):
            if stream in listener.streams:
                listener.push(PresenceEvent(stream, type_, id_, json.loads(info)))
        return [PresenceEvent(stream, type_, id_, json.loads(info))]


class MemoryPresenceListener(PresenceListener):
    """Hands a store's events over on the event loop on which it was made, each in a callback of its own."""

    def __init__(self, listeners: set[MemoryPresenceListener], deliver: Deliver) -> None:
        self.streams: frozenset[str] = frozenset()
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._listeners = listeners

    async def subscribe(self, stream: str) -> None:
        """Announce this stream's events from now on."""
        self.streams |= {stream}
        self._listeners.add(self)

    async def unsubscribe(self, stream: str) -> None:
        """Announce this stream's events no more."""
        self.streams -= {stream}
        if not self.streams:
            self._listeners.discard(self)

    async def close(self) -> None:
        """Leave all streams."""
        self.streams = frozenset()
        self._listeners.discard(self)

    def push(self, event: PresenceEvent) -> None:
        """Take an event, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._hand_over, event)
        except RuntimeError:
            # Its loop is closed; nobody will take it away any more.
            self._listeners.discard(self)

    def _hand_over(self, event: PresenceEvent) -> None:
        if event.stream in self.streams:
            self._deliver(event)
