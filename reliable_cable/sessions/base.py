"""What a session store is: it keeps what a restore needs while the client is away."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from reliable_cable.conf import CableSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as it is kept.

    Args:
        user: whose session it is; only the same user may have it back.
        data: JSON values only; the session knows what they mean.
    """

    user: str
    data: Mapping[str, Any] = field(default_factory=dict)


class SessionStore(ABC):
    """Keeps session records by session id, each until it expires.

    The sync methods may be called from any thread, the twins from any event loop.

    Args:
        settings: `settings.sessions_ttl` is how long a record lives after it was saved or touched, in seconds.
        clock: tells the time, in seconds since 1970.
    """

    #: Whether it needs the tables of `settings.database`.
    uses_database: bool = False

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock

    @abstractmethod
    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Store records by session id, replacing those that are there; their time begins now. One round trip."""

    @abstractmethod
    def load(self, sid: str) -> SessionRecord | None:
        """Return the record of a session, or None if there is none or it expired. It stays."""

    @abstractmethod
    def touch(self, sids: Collection[str]) -> None:
        """Let the records of these sessions live a whole time to live from now on. One round trip."""

    @abstractmethod
    def delete(self, sids: Collection[str]) -> None:
        """Remove records; unknown ids are ignored. One round trip."""

    @abstractmethod
    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to `limit` expired records; return how many went."""

    @abstractmethod
    async def _run(self, call: Callable[[], T]) -> T:
        """Run a sync method of this store without blocking the event loop."""

    async def asave(self, records: Mapping[str, SessionRecord]) -> None:
        """Async twin of `save`."""
        await self._run(partial(self.save, records))

    async def aload(self, sid: str) -> SessionRecord | None:
        """Async twin of `load`."""
        return await self._run(partial(self.load, sid))

    async def atouch(self, sids: Collection[str]) -> None:
        """Async twin of `touch`."""
        await self._run(partial(self.touch, sids))

    async def adelete(self, sids: Collection[str]) -> None:
        """Async twin of `delete`."""
        await self._run(partial(self.delete, sids))

    async def aprune(self, *, limit: int = 1000) -> int:
        """Async twin of `prune`."""
        return await self._run(partial(self.prune, limit=limit))
