"""Presence in the memory of one process."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

from reliable_cable.conf import CableSettings

from .base import PresenceEvent, PresenceInfo, PresenceStore

T = TypeVar("T")
Deliver = Callable[[PresenceEvent], None]


@dataclass(slots=True)
class _Member:
    info: str  # as JSON text, so that nobody shares its objects
    sessions: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Stream:
    members: dict[str, _Member] = field(default_factory=dict)
    #: When the ids that are gone left, by id.
    left: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    loop: asyncio.AbstractEventLoop
    deliver: Deliver


class MemoryPresenceStore(PresenceStore):
    """Keeps who is there in dicts; it ends with the process.

    Only `expire` removes sessions whose time is over: until then they are there. So a process that was suspended finds
    its members still present, and can refresh them before anything else happens.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(settings, clock=clock)
        self.incarnation = secrets.token_hex(8)
        self._streams: dict[str, _Stream] = {}
        # (stream, session) -> (id, deadline), in the order of deadlines: whatever gets a new one goes to the end.
        self._sessions: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._tombstones: deque[tuple[float, str, str]] = deque()
        self._listeners: set[_Listener] = set()
        self._lock = threading.Lock()

    def join(self, stream: str, session: str, id: str, info: object = None) -> None:  # noqa: A002 - as the interface
        """Add or refresh a session.

        Raises:
            TypeError, ValueError: `info` is not a JSON value.
        """
        text = json.dumps(info, allow_nan=False)
        with self._lock:
            key = (stream, session)
            former = self._sessions.get(key)
            if former is not None and former[0] != id:
                self._remove(key)
            self._sessions[key] = (id, self.clock() + self.settings.presence_ttl)
            self._sessions.move_to_end(key)
            found = self._streams.setdefault(stream, _Stream())
            member = found.members.get(id)
            if member is not None:
                member.info = text
            else:
                member = found.members[id] = _Member(text)
                found.left.pop(id, None)
                self._emit("join", stream, id, text)
            member.sessions.add(session)

    def leave(self, stream: str, session: str) -> None:
        """Remove a session."""
        with self._lock:
            if (stream, session) in self._sessions:
                self._remove((stream, session))

    def refresh(self, sessions: Iterable[tuple[str, str]]) -> None:
        """Give sessions a new time."""
        with self._lock:
            deadline = self.clock() + self.settings.presence_ttl
            for key in sessions:
                found = self._sessions.get(key)
                if found is not None:
                    self._sessions[key] = (found[0], deadline)
                    self._sessions.move_to_end(key)

    def expire(self) -> int:
        """Remove what is over, and forget who left longer ago than sessions are kept."""
        with self._lock:
            now = self.clock()
            expired = 0
            while self._sessions:
                key, (_, deadline) = next(iter(self._sessions.items()))
                if deadline > now:
                    break
                self._remove(key)
                expired += 1
            self._forget_left(now)
        return expired

    def info(self, stream: str, *, records: bool = True) -> PresenceInfo:
        """Return who is there."""
        with self._lock:
            found = self._streams.get(stream)
            texts = {id_: member.info for id_, member in found.members.items()} if found else {}
        return PresenceInfo(len(texts), {id_: json.loads(text) for id_, text in texts.items()} if records else None)

    def left_since(self, stream: str, since: float) -> list[str] | None:
        """Return who left, in the order in which they did."""
        with self._lock:
            if since < self.clock() - self.settings.sessions_ttl:
                return None
            found = self._streams.get(stream)
            return [id_ for id_, left_at in found.left.items() if left_at >= since] if found else []

    def listen(self, deliver: Deliver) -> Callable[[], None]:
        """Hand events over, each in a callback of its own, in the order in which they happened."""
        listener = _Listener(asyncio.get_running_loop(), deliver)
        with self._lock:
            self._listeners.add(listener)
        return partial(self._listeners.discard, listener)

    async def _run(self, call: Callable[[], T]) -> T:
        return call()

    # -- with the lock held -----------------------------------------------------------------------------------------

    def _remove(self, key: tuple[str, str]) -> None:
        stream, session = key
        id_, _ = self._sessions.pop(key)
        found = self._streams[stream]
        member = found.members[id_]
        member.sessions.discard(session)
        if not member.sessions:
            del found.members[id_]
            now = self.clock()
            found.left[id_] = now
            self._tombstones.append((now, stream, id_))
            self._forget_left(now)
            self._emit("leave", stream, id_, member.info)

    def _forget_left(self, now: float) -> None:
        while self._tombstones and self._tombstones[0][0] < now - self.settings.sessions_ttl:
            left_at, stream, id_ = self._tombstones.popleft()
            found = self._streams.get(stream)
            if found is None:
                continue
            # Whoever left again since then has another, later tombstone.
            if found.left.get(id_) == left_at:
                del found.left[id_]
            if not found.left and not found.members:
                del self._streams[stream]

    def _emit(self, type_: Literal["join", "leave"], stream: str, id_: str, info: str) -> None:
        for listener in tuple(self._listeners):
            event = PresenceEvent(stream, type_, id_, json.loads(info))
            try:
                listener.loop.call_soon_threadsafe(self._deliver, listener, event)
            except RuntimeError:
                # Its loop is closed; nobody will take it away any more.
                self._listeners.discard(listener)

    def _deliver(self, listener: _Listener, event: PresenceEvent) -> None:
        if listener in self._listeners:
            listener.deliver(event)
