"""What a presence store is: who is in a stream, kept by expiry."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from reliable_cable.conf import CableSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PresenceEvent:
    """Someone came to a stream, or left it (PROTOCOL.md, 14)."""

    stream: str
    type: Literal["join", "leave"]
    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class PresenceInfo:
    """Who is in a stream.

    Args:
        total: how many ids are there.
        records: each id's info, in the order in which they came; None if only the total was asked for.
    """

    total: int
    records: Mapping[str, Any] | None = field(default_factory=dict)


class PresenceStore(ABC):
    """Keeps who is in a stream.

    A member is an id (a string) with an info (any JSON value). It is there while at least one of its sessions is: a
    session is an opaque key (one per connection and subscription) that lives until `leave`, or until `ttl` seconds
    passed without `refresh`. Exactly one join event is emitted when an id's first session comes and exactly one leave
    event when its last one goes, whoever notices. The same id joining again with another info updates the record and
    emits nothing. A session that joins as another id has left as the first one.

    Events go to the callbacks that `listen` registered.

    Args:
        settings: `settings.presence_ttl` is the time to live of a session, in seconds.
        clock: tells the time, in seconds since 1970.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock

    #: Names this store's memory: a session that was here under another value finds its presence lost.
    incarnation: str = ""

    @abstractmethod
    def join(self, stream: str, session: str, id: str, info: Any = None) -> None:  # noqa: A002 - the wire's name
        """Add a session of `id` to a stream, or refresh it."""

    @abstractmethod
    def leave(self, stream: str, session: str) -> None:
        """Remove a session from a stream; an unknown one is ignored."""

    @abstractmethod
    def refresh(self, sessions: Iterable[tuple[str, str]]) -> None:
        """Let these (stream, session) pairs live a whole time to live from now on; unknown ones are ignored."""

    @abstractmethod
    def expire(self) -> int:
        """Remove the sessions whose time is over, emit their leaves, and return how many went."""

    @abstractmethod
    def info(self, stream: str, *, records: bool = True) -> PresenceInfo:
        """Return who is in a stream, or only how many (`records=False`)."""

    @abstractmethod
    def left_since(self, stream: str, since: float) -> list[str] | None:
        """Return the ids that left the stream at or after `since` and are not back.

        None if that is not known any more (`since` is longer ago than sessions are kept).
        """

    @abstractmethod
    def listen(self, deliver: Callable[[PresenceEvent], None]) -> Callable[[], None]:
        """Hand events to `deliver`, on the event loop that calls this; return what ends it."""

    @abstractmethod
    async def _run(self, call: Callable[[], T]) -> T:
        """Run a sync method of this store without blocking the event loop."""

    async def ajoin(self, stream: str, session: str, id: str, info: Any = None) -> None:  # noqa: A002 - as `join`
        """Async twin of `join`."""
        await self._run(partial(self.join, stream, session, id, info))

    async def aleave(self, stream: str, session: str) -> None:
        """Async twin of `leave`."""
        await self._run(partial(self.leave, stream, session))

    async def arefresh(self, sessions: Iterable[tuple[str, str]]) -> None:
        """Async twin of `refresh`."""
        await self._run(partial(self.refresh, sessions))

    async def aexpire(self) -> int:
        """Async twin of `expire`."""
        return await self._run(self.expire)

    async def ainfo(self, stream: str, *, records: bool = True) -> PresenceInfo:
        """Async twin of `info`."""
        return await self._run(partial(self.info, stream, records=records))

    async def aleft_since(self, stream: str, since: float) -> list[str] | None:
        """Async twin of `left_since`."""
        return await self._run(partial(self.left_since, stream, since))
