"""`presence_for`, with which Django code reads the members of a stream."""

from reliable_cable.concurrency.threads import sync_only
from reliable_cable.namespaces import split_namespace
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.presence.base import PresenceInfo, PresenceStore
from reliable_cable.validation import resolve_stream


class StreamPresence:
    """The object that `presence_for` returns. It reads the members of a stream.

    All methods raise `StoreError` if the store cannot be read, and `NotSupported` if only anycable-go knows the members
    (`BROADCAST_ADAPTER`). The sync methods raise `AsyncContextError` in a thread with a running event loop.
    """

    __slots__ = ("_name", "_store", "stream")

    def __init__(self, name: str, store: PresenceStore) -> None:
        self._name = name
        self._store = store
        #: The name of the stream, without its namespace.
        self.stream = split_namespace(name)[1]

    @sync_only("ainfo")
    def info(self, *, records: bool = True) -> PresenceInfo:
        """Return the members and the number of members. With `records=False`, return only the number."""
        return self._store.info(self._name, records=records, overdue=False)

    @sync_only("atotal")
    def total(self) -> int:
        """Return the number of members. A member with several connections counts once."""
        return self._store.info(self._name, records=False, overdue=False).total

    async def ainfo(self, *, records: bool = True) -> PresenceInfo:
        """Async version of `info`."""
        return await self._store.ainfo(self._name, records=records, overdue=False)

    async def atotal(self) -> int:
        """Async version of `total`."""
        return (await self._store.ainfo(self._name, records=False, overdue=False)).total


def presence_for(stream: str) -> StreamPresence:
    """Return the presence of a stream, as in `presence_for("chat:1").total()`.

    With the engine "memory", only members that are connected to this process are found. With the other engines, the
    members of all processes are found.

    Raises:
        InvalidStreamName: the name is not valid. For a target of a channel, use `ChatChannel.broadcasting_for(target)`.
    """
    return StreamPresence(resolve_stream(stream), get_engine().presence)
