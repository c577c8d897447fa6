"""The presence store in the memory of one process."""

import json
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal, TypeVar

from reliable_cable.conf import CableSettings
from reliable_cable.stores.bus import Bus, BusListener

from .base import Member, PresenceEvent, PresenceInfo, PresenceListener, PresenceMissed, PresenceStore, Refreshed

T = TypeVar("T")
Deliver = Callable[[PresenceEvent | PresenceMissed], None]


@dataclass(slots=True)
class _Member:
    #: The info of each session, as JSON text, so that callers share no objects with the store. The sessions are in the
    #: order of their joins.
    infos: dict[str, str] = field(default_factory=dict)

    @property
    def info(self) -> str:
        return next(iter(self.infos.values()))


@dataclass(slots=True)
class _Stream:
    members: dict[str, _Member] = field(default_factory=dict)
    #: The times of leaves, by id. The ids of present members are not included.
    left: dict[str, float] = field(default_factory=dict)


class MemoryPresenceListener(BusListener[PresenceEvent | PresenceMissed], PresenceListener):
    """Announces the events of this process. Each listener delivers copies, which the receiver may change."""

    def __init__(self, bus: Bus[PresenceEvent | PresenceMissed], deliver: Deliver) -> None:
        super().__init__(bus, lambda event: deliver(deepcopy(event)))


class MemoryPresenceStore(PresenceStore):
    """Stores the members of streams in the memory of this process.

    An expired session is still present, and can be refreshed, until `expire` removes it.
    """

    place = "memory of this process"

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock=clock)
        self._incarnation = secrets.token_hex(8)
        self._streams: dict[str, _Stream] = {}
        #: The id and the time of expiry of each session, by (stream, session). The sessions are in the order of their
        #: expiry, because a new or refreshed session moves to the end.
        self._sessions: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        #: The times of expiry of the sessions for which `shorten` was called, the earliest first.
        self._shortened: dict[tuple[str, str], float] = {}
        #: The remembered leaves, as (time, stream, id), the oldest first.
        self._tombstones: deque[tuple[float, str, str]] = deque()
        #: The time at which `expire` was last called. If no sessions remained after that call, it is the time of the
        #: next join, or None until then.
        self._expired_at: float | None = None
        #: The time until which `expire` removes no sessions, because there was an outage; 0 if there was none.
        self._grace_end = 0.0
        self._bus: Bus[PresenceEvent | PresenceMissed] = Bus()
        self._lock = threading.Lock()

    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Add sessions, or refresh them."""
        texts = [json.dumps(member.info, allow_nan=False) for member in members]
        with self._lock:
            return [event for member, text in zip(members, texts, strict=True) for event in self._join(member, text)]

    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Remove a session."""
        with self._lock:
            return self._remove((stream, session)) if (stream, session) in self._sessions else []

    def shorten(self, stream: str, session: str) -> None:
        """Let a session expire after `settings.presence_grace` seconds, unless it expires earlier."""
        with self._lock:
            known = self._sessions.get((stream, session))
            deadline = self.clock() + self.settings.presence_grace
            if known is not None and deadline < known[1]:
                self._shortened.setdefault((stream, session), deadline)

    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Renew the TTL of sessions."""
        unknown: list[tuple[str, str]] = []
        with self._lock:
            deadline = self.clock() + self.settings.presence_ttl
            for key in [(stream, session) for stream, sessions in held.items() for session in sessions]:
                known = self._sessions.get(key)
                if known is None:
                    unknown.append(key)
                else:
                    self._keep(key, known[0], deadline)
        return Refreshed(unknown, dict.fromkeys(held, self._incarnation))

    def expire(self) -> list[PresenceEvent]:
        """Remove expired sessions, and forget old leaves."""
        events: list[PresenceEvent] = []
        with self._lock:
            now = self.clock()
            if self._expired_at is not None and now - self._expired_at > self.outage:
                # The process was suspended, and could not refresh its sessions. Give it time to refresh them.
                self._grace_end = now + self.settings.presence_ttl
            if now >= self._grace_end:
                for key in self._overdue():
                    events += self._remove(key)
            self._expired_at = now if self._sessions else None
            self._forget_leaves(now)
        return events

    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Return the members of a stream."""
        with self._lock:
            state = self._streams.get(stream)
            members = dict(state.members) if state else {}
            expired = set() if overdue else {session for name, session in self._overdue() if name == stream}
            texts = {
                id_: member.info for id_, member in members.items() if not expired or member.infos.keys() - expired
            }
        infos = {id_: json.loads(text) for id_, text in texts.items()} if records else None
        return PresenceInfo(len(texts), infos, self._incarnation)

    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Return the ids of members that left in the last `seconds` and have not joined again, in order of leaving."""
        with self._lock:
            since = self.clock() - min(seconds, self.memory)
            state = self._streams.get(stream)
            return [id_ for id_, left_at in state.left.items() if left_at >= since] if state else []

    def listen(self, deliver: Deliver) -> MemoryPresenceListener:
        """Return a listener that calls `deliver` with events on the running event loop, in the order of the events."""
        return MemoryPresenceListener(self._bus, deliver)

    async def _run(self, call: Callable[[], T]) -> T:
        return call()

    # -- methods that need the lock -----------------------------------------------------------------------------------

    def _join(self, member: Member, text: str) -> list[PresenceEvent]:
        events: list[PresenceEvent] = []
        key = (member.stream, member.session)
        self._replace(member)
        former = self._sessions.get(key)
        if former is not None and former[0] != member.id:
            events += self._remove(key)
        now = self.clock()
        self._keep(key, member.id, now + self.settings.presence_ttl)
        if self._expired_at is None:
            self._expired_at = now
        state = self._streams.setdefault(member.stream, _Stream())
        known = state.members.get(member.id)
        if known is None:
            known = state.members[member.id] = _Member()
            had_left = state.left.pop(member.id, None) is not None
            joined = self._emit("join", member.stream, member.id, text)
            events += joined if had_left or not member.joined else []
        known.infos[member.session] = text
        return events

    def _replace(self, member: Member) -> None:
        replaced, key = (member.stream, member.replaces), (member.stream, member.session)
        former = self._sessions.get(replaced)
        if former is None or former[0] != member.id or key in self._sessions:
            return
        self._sessions[key] = self._sessions.pop(replaced)
        self._shortened.pop(replaced, None)
        known = self._streams[member.stream].members[member.id]
        names = {member.replaces: member.session}
        known.infos = {names.get(session, session): text for session, text in known.infos.items()}

    def _overdue(self) -> list[tuple[str, str]]:
        now = self.clock()
        overdue = [key for key, _ in takewhile(lambda item: item[1][1] <= now, self._sessions.items())]
        overdue += [key for key, _ in takewhile(lambda item: item[1] <= now, self._shortened.items())]
        return list(dict.fromkeys(overdue))

    def _keep(self, key: tuple[str, str], id_: str, deadline: float) -> None:
        self._sessions[key] = (id_, deadline)
        self._sessions.move_to_end(key)
        self._shortened.pop(key, None)

    def _remove(self, key: tuple[str, str]) -> list[PresenceEvent]:
        stream, session = key
        id_, _ = self._sessions.pop(key)
        self._shortened.pop(key, None)
        state = self._streams[stream]
        member = state.members[id_]
        info = member.infos.pop(session)
        if member.infos:
            return []
        del state.members[id_]
        now = self.clock()
        state.left[id_] = now
        self._tombstones.append((now, stream, id_))
        self._forget_leaves(now)
        return self._emit("leave", stream, id_, info)

    def _forget_leaves(self, now: float) -> None:
        while self._tombstones and self._tombstones[0][0] < now - self.memory:
            left_at, stream, id_ = self._tombstones.popleft()
            state = self._streams.get(stream)
            if state is None:
                continue
            # If the id joined and left again after this leave, its newer leave is still remembered.
            if state.left.get(id_) == left_at:
                del state.left[id_]
            if not state.left and not state.members:
                del self._streams[stream]

    def _emit(self, type_: Literal["join", "leave"], stream: str, id_: str, info: str) -> list[PresenceEvent]:
        self._bus.publish([PresenceEvent(stream, type_, id_, json.loads(info))])
        return [PresenceEvent(stream, type_, id_, json.loads(info))]
