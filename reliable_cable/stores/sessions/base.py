"""What a session store is: it keeps what a restore needs while the client is away."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from reliable_cable.conf import CableSettings
from reliable_cable.identity import Identity

T = TypeVar("T")

#: A connection that is authenticated within this many seconds after a revocation counts as authenticated before it. The
#: time of a connection is not exact (clock.py), and Django may delete a login session only after its logout signal.
CLOCK_MARGIN: Final = 1.0

MAX_SID_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as it is kept.

    Args:
        identity: whose session it is; only the same one may have it back.
        authenticated: when its connection was authenticated, by the store's clock, in seconds since 1970.
        data: JSON values only; the session knows what they mean.
    """

    identity: Identity
    authenticated: float
    data: Mapping[str, Any] = field(default_factory=dict)


def is_session_id(sid: str) -> bool:
    """Whether a text can be a session's id: a client may send anything, also what a store takes for an error."""
    return 0 < len(sid) <= MAX_SID_LENGTH and sid.isascii() and sid.isprintable()


def is_revoked(authenticated: float, times: Iterable[float]) -> bool:
    """Whether a session is void, given when its connection was authenticated and when its like were revoked."""
    return any(authenticated <= at + CLOCK_MARGIN for at in times)


class SessionStore(ABC):
    """Keeps session records by session id, each until it expires, and what was revoked for as long as records live.

    The sync methods may be called from any thread, the twins from any event loop.

    Args:
        settings: `settings.sessions_ttl` is how long a record lives after it was saved or touched, in seconds.
        clock: this host's clock, in seconds since 1970. A store on a server uses the server's clock instead (see
            `time`).
    """

    #: Whether it needs the tables of `settings.database`.
    uses_database: bool = False

    #: Whether records may be gone before their time.
    may_lose_data: bool = False

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock

    @abstractmethod
    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Store records by session id, replacing those that are there; their time begins now. One round trip."""

    @abstractmethod
    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the record of a session if it is this identity's and was not revoked; it stays. One round trip."""

    def load_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        """Do as `load` for several sessions. A store that can do it in one round trip overrides this."""
        return [self.load(sid, identity) for sid, identity in wanted]

    @abstractmethod
    def touch(self, sids: Collection[str]) -> set[str]:
        """Let the records of these sessions live a whole time to live from now on; return the ids that have none.

        One round trip.
        """

    @abstractmethod
    def delete(self, sids: Collection[str]) -> None:
        """Remove records; unknown ids are ignored. One round trip."""

    @abstractmethod
    def revoke(self, condition: Identity) -> float:
        """Void every session that was authenticated before now and matches a condition, also if it is saved later.

        Args:
            condition: at least one identifier.

        Returns:
            The time of the revocation, by the store's clock.
        """

    @abstractmethod
    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the last time that sessions of its kind were revoked; 0 if that is not known."""

    @abstractmethod
    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to `limit` expired records; return how many went."""

    def time(self) -> float:
        """Return the present time by the store's clock, in seconds since 1970.

        Raises:
            StoreError: the store could not be reached.
        """
        return self.clock()

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clocks of the store's servers, by the servers' names; see `StreamStore.clocks`."""
        return {}

    async def aclose(self) -> None:
        """Release what this store holds on the running event loop; it may be used again."""
        return None

    @abstractmethod
    async def _run(self, call: Callable[[], T]) -> T:
        """Run a sync method of this store without blocking the event loop."""

    async def _run_write(self, call: Callable[[], T]) -> T:
        """Run a sync method that writes, and may have to wait for other writers, without blocking the event loop."""
        return await self._run(call)

    async def asave(self, records: Mapping[str, SessionRecord]) -> None:
        """Async twin of `save`."""
        await self._run_write(partial(self.save, records))

    async def aload(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Async twin of `load`."""
        return await self._run(partial(self.load, sid, identity))

    async def aload_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        """Async twin of `load_many`."""
        return await self._run(partial(self.load_many, wanted))

    async def atouch(self, sids: Collection[str]) -> set[str]:
        """Async twin of `touch`."""
        return await self._run_write(partial(self.touch, sids))

    async def adelete(self, sids: Collection[str]) -> None:
        """Async twin of `delete`."""
        await self._run_write(partial(self.delete, sids))

    async def arevoke(self, condition: Identity) -> float:
        """Async twin of `revoke`."""
        return await self._run_write(partial(self.revoke, condition))

    async def arevoked(self, identities: Sequence[Identity]) -> list[float]:
        """Async twin of `revoked`."""
        return await self._run(partial(self.revoked, identities))

    async def atime(self) -> float:
        """Async twin of `time`."""
        return await self._run(self.time)

    async def aprune(self, *, limit: int = 1000) -> int:
        """Async twin of `prune`."""
        return await self._run_write(partial(self.prune, limit=limit))
