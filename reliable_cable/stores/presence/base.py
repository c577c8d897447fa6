"""What a presence store is: who is in a stream, kept by expiry."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, TypeVar

from reliable_cable.conf import CableSettings

T = TypeVar("T")

#: How long before the end of its connection a client may have heard nothing any more, in seconds: the dead are noticed
#: late. Who left is remembered longer than sessions are kept by as much.
UNHEARD_TIME: Final = 60.0


#: An outage of the store is assumed when no process has called `expire` for this part of PRESENCE_TTL. Each process
#: refreshes its members and then calls `expire` every third of PRESENCE_TTL, so the part must be greater than a third.
#: It must be less than two thirds, which is the time that a member has left at its next refresh.
OUTAGE_PART: Final = 0.5


@dataclass(frozen=True, slots=True)
class PresenceEvent:
    """Someone came to a stream, or left it (PROTOCOL.md, 14)."""

    stream: str
    type: Literal["join", "leave"]
    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class PresenceMissed:
    """Events of a stream may have been missed: who is there must be read again."""

    stream: str


@dataclass(frozen=True, slots=True)
class PresenceInfo:
    """Who is in a stream.

    Args:
        total: how many ids are there.
        records: each id's info, in the order in which they came; None if only the total was asked for.
        incarnation: names the data that this was read from: under another one, some were lost in between. Empty: there
            are none.
    """

    total: int
    records: Mapping[str, Any] | None = field(default_factory=dict)
    incarnation: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Member:
    """A session of an id in a stream, as the process knows it that holds it.

    Args:
        stream: its name.
        session: an opaque key.
        id: whose session it is.
        info: what is shown of the id.
        joined: whether the store is known to have had it.
    """

    stream: str
    session: str
    id: str
    info: Any = None
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh found.

    Args:
        unknown: the (stream, session) pairs that are not there: swept meanwhile, or lost.
        incarnations: each stream's, by its name; see `PresenceInfo`.
    """

    unknown: Sequence[tuple[str, str]]
    incarnations: Mapping[str, str]


class PresenceListener(ABC):
    """Announces what happens in the streams that it subscribed to; made by `PresenceStore.listen`."""

    @abstractmethod
    async def subscribe(self, stream: str) -> None:
        """Announce this stream's events from now on."""

    @abstractmethod
    async def unsubscribe(self, stream: str) -> None:
        """Announce this stream's events no more, not even those on their way."""

    @abstractmethod
    async def close(self) -> None:
        """Unsubscribe from everything and release what is held."""


class PresenceStore(ABC):
    """Keeps who is in a stream.

    A member is an id (a string) with an info (any JSON value). It is there while at least one of its sessions is: a
    session is an opaque key (one per connection and subscription) that lives until `leave`, or until `expire` finds
    that `presence_ttl` seconds passed without `refresh`. Exactly one join event is announced when an id's first session
    comes and exactly one leave event when its last one goes, whoever notices. The same id joining again with another
    info updates the record and announces nothing. A session that joins as another id has left as the first one.

    Events are announced to the listeners of every process that shares the store; the call that caused them returns
    them, too, so that one process can do once what is to be done once. If a call's answer is lost, nobody gets them.

    Args:
        settings: `settings.presence_ttl` is the time to live of a session, in seconds.
        clock: tells the time, in seconds since 1970.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock

    @property
    def outage(self) -> float:
        """After how many seconds without a call of `expire` by any process an outage is assumed."""
        return self.settings.presence_ttl * OUTAGE_PART

    @property
    def memory(self) -> float:
        """The seconds for which it is remembered who left."""
        return self.settings.sessions_ttl + UNHEARD_TIME

    def join(self, stream: str, session: str, id: str, info: Any = None) -> list[PresenceEvent]:  # noqa: A002
        """Add a session of `id` to a stream, or refresh it; return the events that this caused.

        Raises:
            TypeError, ValueError: `info` is not a JSON value.
            StoreError: whether it was added is unknown.
        """
        return self.join_all([Member(stream, session, id, info)])

    @abstractmethod
    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Add sessions, or refresh them, in this order; return the events that tell of a change.

        If the store has lost its data, members that had `joined` are announced, so that everyone's list becomes right,
        but not returned: nobody came. Those whose leave was announced before come anew.
        """

    @abstractmethod
    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Remove a session from a stream; an unknown one is ignored. Returns the events that this caused."""

    @abstractmethod
    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Let sessions live a whole time to live from now on.

        Args:
            held: by stream, the sessions; none for a stream of which only the incarnation is asked for (it begins one).
        """

    @abstractmethod
    def expire(self) -> list[PresenceEvent]:
        """Remove the expired sessions of all streams, and return the leave events that this caused.

        Each process calls this about as often as `refresh`, and after it. If no process has called it for `outage`
        seconds, sessions could not be refreshed. Then nothing is removed for the next `presence_ttl` seconds.
        """

    @abstractmethod
    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Return who is in a stream.

        Args:
            stream: its name.
            records: False: only how many.
            overdue: False: without those whose time is over and whose leaves are still to be announced.
        """

    @abstractmethod
    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Return the ids that left the stream in the last so many seconds, `memory` at most, and are not back."""

    @abstractmethod
    def listen(self, deliver: Callable[[PresenceEvent | PresenceMissed], None]) -> PresenceListener:
        """Return a listener that hands events to `deliver`, on the event loop that calls this.

        `deliver` is always called on that loop, in a callback of its own, never from inside another call here.
        """

    async def aclose(self) -> None:
        """Release what this store holds on the running event loop; it may be used again."""
        return None

    @abstractmethod
    async def _run(self, call: Callable[[], T]) -> T:
        """Run a sync method of this store without blocking the event loop."""

    async def ajoin(self, stream: str, session: str, id: str, info: Any = None) -> list[PresenceEvent]:  # noqa: A002
        """Async twin of `join`."""
        return await self.ajoin_all([Member(stream, session, id, info)])

    async def ajoin_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Async twin of `join_all`."""
        return await self._run(partial(self.join_all, members))

    async def aleave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Async twin of `leave`."""
        return await self._run(partial(self.leave, stream, session))

    async def arefresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Async twin of `refresh`."""
        return await self._run(partial(self.refresh, held))

    async def aexpire(self) -> list[PresenceEvent]:
        """Async twin of `expire`."""
        return await self._run(self.expire)

    async def ainfo(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Async twin of `info`."""
        return await self._run(partial(self.info, stream, records=records, overdue=overdue))

    async def aleft_within(self, stream: str, seconds: float) -> list[str]:
        """Async twin of `left_within`."""
        return await self._run(partial(self.left_within, stream, seconds))
