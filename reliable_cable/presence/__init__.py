"""Presence for Django code: the members of a stream."""

from __future__ import annotations

from reliable_cable.concurrency.threads import sync_only
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.presence.base import PresenceInfo, PresenceStore


class StreamPresence:
    """The presence of one stream. `presence_for` returns one.

    All methods raise `StoreError` if the store cannot be read. In a thread with a running event loop, the sync methods
    raise `AsyncContextError`.
    """

    __slots__ = ("_store", "stream")

    def __init__(self, stream: str, store: PresenceStore) -> None:
        self.stream = stream
        self._store = store

    @sync_only("ainfo")
    def info(self, *, records: bool = True) -> PresenceInfo:
        """Return the members and their number. With `records=False`, return the number only."""
        return self._store.info(self.stream, records=records, overdue=False)

    @sync_only("atotal")
    def total(self) -> int:
        """Return the number of members. A member has one id, and may have several connections."""
        return self._store.info(self.stream, records=False, overdue=False).total

    async def ainfo(self, *, records: bool = True) -> PresenceInfo:
        """Async twin of `info`."""
        return await self._store.ainfo(self.stream, records=records, overdue=False)

    async def atotal(self) -> int:
        """Async twin of `total`."""
        return (await self._store.ainfo(self.stream, records=False, overdue=False)).total


def presence_for(stream: str) -> StreamPresence:
    """Return the presence of a stream: `presence_for("chat:1").total()`.

    With the engines "memory" and "database", the members are those that are connected to this process. With "redis",
    they are those that are connected to any process.
    """
    return StreamPresence(stream, get_engine().presence)
