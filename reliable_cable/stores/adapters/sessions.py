"""The session store of projects whose clients are connected to anycable-go, which keeps their sessions itself."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from reliable_cable.concurrency.threads import run_publish
from reliable_cable.identity import Identity
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore

T = TypeVar("T")


class AdapterSessionStore(SessionStore):
    """Stores nothing. A revocation needs no record, because anycable-go forgets the sessions that it disconnects."""

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Store nothing."""

    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return None, because no session is stored."""
        return None

    def touch(self, sids: Collection[str]) -> set[str]:
        """Return all session ids, because none of them has a record."""
        return set(sids)

    def delete(self, sids: Collection[str]) -> None:
        """Delete nothing."""

    def revoke(self, condition: Identity) -> float:
        """Return the current time. The stream store sends the disconnect to anycable-go."""
        return self.clock()

    async def arevoke(self, condition: Identity) -> float:
        """Async version of `revoke`."""
        return self.clock()

    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return 0 for each identity, because no revocations are stored."""
        return [0.0] * len(identities)

    def prune(self, *, limit: int = 1000) -> int:
        """Delete nothing."""
        return 0

    async def _run(self, call: Callable[[], T]) -> T:
        return await run_publish(call)
