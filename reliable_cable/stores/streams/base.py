"""The interface of stream stores, which number, store and announce the messages of streams."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from reliable_cable.concurrency.on_commit import call_after_commit
from reliable_cable.conf import IDLE_STREAM_TTL as IDLE_STREAM_TTL
from reliable_cable.exceptions import BroadcastError, StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.base import Listener, Store, async_twin

from .failures import report_failure

#: The position of a stream that does not exist.
NOWHERE = StreamPosition("", 0)

#: A time before this one, in seconds since 1970, cannot come from a web page or a ping. A request with such a time asks
#: for all messages that the stream has in its epoch, whatever was lost before the epoch.
LONG_AGO = 86400.0

#: How long, in seconds, every entry stays readable for clients that follow the stream without a break, even beyond the
#: history size. Such entries are called young, and such clients are called followers.
YOUNG_TIME = 20.0
#: The maximum number of bytes of young entries that a stream keeps beyond its history size.
YOUNG_SIZE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Message:
    """A message to broadcast.

    Args:
        data: the payload as JSON text.
        exclude: the id of the session that must not receive the message, or `""`.
        idempotency_key: if the stream has a stored message with the same key, an append stores nothing, and returns the
            position of the stored message. `""` means no key.
    """

    data: str
    exclude: str = ""
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """The event that a numbered message was stored. It may come late, twice, out of order, or not at all."""

    stream: str
    epoch: str
    entry: Entry

    @property
    def position(self) -> StreamPosition:
        """The position of the message."""
        return StreamPosition(self.epoch, self.entry.offset)


@dataclass(frozen=True, slots=True)
class Transient:
    """The event that a message without a position was sent. The message is delivered now or never.

    Args:
        stream: the name of the stream.
        data: the payload as JSON text.
        exclude: the id of the session that must not receive the message; `""` if there is none.
        whisper: whether a client sent the message. A client whose socket is full misses a whisper.
    """

    stream: str
    data: str
    exclude: str = ""
    whisper: bool = False


@dataclass(frozen=True, slots=True)
class Advanced:
    """The event that a stream may have new messages or a new epoch. The receiver must read the stream."""

    stream: str


StreamEvent = Published | Transient | Advanced


def moved(was: StreamPosition, now: StreamPosition, tail: StreamPosition) -> bool:
    """Return whether a read of a stream's tail found messages that were not announced.

    Args:
        was: the newest announced position when the read began.
        now: the newest announced position when the read ended.
        tail: the position that the read returned.
    """
    # Announcements that arrived during the read may have reached the tail, or gone beyond it.
    overtaken = tail.epoch == now.epoch and was.offset <= tail.offset <= now.offset
    return tail != was and not overtaken


class StreamListener(Listener):
    """Receives the events of a stream store. `StreamStore.listen` returns one.

    Each message that is appended after `subscribe` has returned causes an event: `Published` with the message, or
    `Advanced`. After `Advanced`, a read of the stream returns the message.
    """

    async def subscribe_many(self, streams: Collection[str]) -> None:
        """Start to announce the events of several streams. Override this if one round trip can do it.

        If this method raises an error, the caller unsubscribes from all of the streams.
        """
        for stream in streams:
            await self.subscribe(stream)

    async def fence(self) -> None:
        """Wait until every event that was announced before this call has been delivered, or is known to be lost.

        To find out whether missing messages are lost, read the store, and then call this method. Messages that have not
        arrived when it returns are lost.
        """

    def doubt(self, stream: str) -> None:
        """Make the next check announce `Advanced` for a stream, if the stream exists.

        Call this when a repair has ended before the stream reached the announced position.
        """


class StreamStore(Store):
    """Numbers, stores and announces messages.

    The stored messages of a stream have the offsets 1, 2, 3, … without holes in each epoch. An epoch never gives an
    offset twice. Times are in seconds since 1970 by the store's clock. The times of a stream's entries never decrease.

    The store reads the history settings of a stream from `settings.policy(stream)`.
    """

    #: Whether the store fulfils the promise of the setting `durable`.
    supports_durable: bool = False

    @abstractmethod
    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, all or none, in this order, and announce them. Return their positions.

        Use `publish_transient` for streams with a history size of 0.

        Raises:
            BroadcastError: nothing was stored.
            BroadcastUncertain: the response was lost. Repeating the append with the same idempotency key is safe.
        """

    def require_history(self, streams: Iterable[str]) -> None:
        """Check that messages can be appended to some streams.

        Raises:
            BroadcastError: a stream has a history size of 0.
        """
        for stream in streams:
            if not self.settings.policy(stream).history_size:
                raise BroadcastError(f"The stream {stream!r} keeps no history; publish to it as a transient message.")

    def append_on_commit(self, items: Sequence[tuple[str, Message]], using: str) -> None:
        """Store messages if the open transaction on database `using` commits.

        This implementation appends the messages after the commit. If the process crashes between the commit and the
        append, the messages are lost. If the append fails, the error is logged, and the signal `broadcast_failed` is
        sent. A store that uses the database of the transaction overrides this method.

        Raises:
            BroadcastError: the messages could not be added to the transaction, or Django runs no `on_commit` hooks for
                it.
        """
        items = tuple(items)
        failed = partial(report_failure, type(self), [stream for stream, _ in items])
        call_after_commit(partial(self.append, items), [using], failed=failed)

    @abstractmethod
    def publish_transient(self, stream: str, message: Message) -> None:
        """Announce a message to every process, without storing it."""

    def whisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper.

        A whisper is a transient message. It must cost little, so the store may announce it to this process only.
        """
        self.publish_transient(stream, message)

    @abstractmethod
    def read(
        self,
        stream: str,
        *,
        after: int,
        limit: int,
        max_size: int | None = None,
        known: StreamPosition | None = None,
        following: bool = False,
    ) -> StreamPage:
        """Return up to `limit` stored entries with greater offsets than `after`, and the stream's state.

        The entries are in the order of their offsets. If `after + 1` is no longer stored, they begin with the oldest
        stored entry. A stream that does not exist has the epoch `""`.

        Args:
            stream: the name of the stream.
            after: the offset after which the entries begin.
            limit: the maximum number of entries to return.
            max_size: the approximate size in bytes after which no further entry is returned. At least one entry is
                returned. None means no such limit.
            following: whether the reader has followed the stream without a break. If so, it gets every entry that the
                store still has. That includes at least the young entries, up to `YOUNG_SIZE` bytes beyond the history
                size (see `YOUNG_TIME`). Other readers get only the entries that the history size and the TTL allow.
            known: a position that the stream once had in its current epoch. A store with a fast copy, which may lag,
                may return the state of this copy if it has reached the position. None requests the current state.
        """

    @abstractmethod
    def offset_since(self, stream: str, since: float) -> int | None:
        """Return the offset before the first message since a time.

        All messages that were appended at or after `since` have greater offsets. Return None if some of them were
        trimmed, have expired, or belong to an epoch that has ended. Return 0 if the stream does not exist.

        If the stream's `history_meta_ttl` is shorter than `IDLE_STREAM_TTL`, return None for a time that is longer ago
        than `history_meta_ttl`, because the stream may have been deleted.
        """

    def deleted_after(self, stream: str) -> float | None:
        """Return after how many idle seconds a stream is deleted; None if `offset_since` need not consider it."""
        ttl = self.settings.policy(stream).history_meta_ttl
        return ttl if ttl < IDLE_STREAM_TTL else None

    async def alineage(self, *, durable: bool = False) -> str:
        """Return the lineage of the data. Data of another lineage may lack messages that were stored in this one.

        Args:
            durable: whether to return the lineage of the data that contain the durable streams.

        Returns:
            The lineage; `""` if the store does not know it.
        """
        return ""

    def position(self, stream: str) -> StreamPosition:
        """Return the position of the stream's newest message, or `("", 0)` if there never was one."""
        page = self.read(stream, after=0, limit=0)
        return StreamPosition(page.epoch, page.tail)

    async def apositions(self, streams: Collection[str]) -> list[StreamPosition]:
        """Return the positions of several streams. Override this if one round trip can do it."""
        return [await self.aposition(stream) for stream in streams]

    @abstractmethod
    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch. The next message begins a new epoch at offset 1.

        Args:
            stream: the name of the stream.
            epoch: forget the stream only if this is still its epoch (a compare-and-set). `""` means any epoch. A hub
                that has found out that the store lost messages passes the epoch of the stream.
        """

    def forget_all(self) -> int:
        """End the epoch of every stream, as `forget` does for one, in bounded steps. Return the number of streams.

        Call this after every restore from a backup. Otherwise the store would give the offsets of lost messages to
        other messages in the same epoch. Messages in the transactional outbox survive.

        Raises:
            StoreError: the store could not be reached, or does not implement this method.
        """
        raise StoreError(f"{type(self).__name__} cannot end the epochs of all streams: it does not have forget_all().")

    @abstractmethod
    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` entries that exceed their stream's size or TTL; return how many were deleted."""

    @abstractmethod
    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        """Return a listener that calls `deliver` with events on the running event loop.

        `deliver` is never called from inside a method of the listener or of the store.
        """

    def problems(self) -> list[str]:
        """Return the faults of the server that break the store's promises, each as a sentence that names a remedy.

        Raises:
            StoreError: the store could not be reached.
        """
        return []

    def close(self) -> None:
        """Release the store's resources in this process. The store may be used again."""

    aappend = async_twin(append, writes=True)
    apublish_transient = async_twin(publish_transient, writes=True)
    awhisper = async_twin(whisper)
    aread = async_twin(read)
    aoffset_since = async_twin(offset_since)
    aposition = async_twin(position)
    aforget = async_twin(forget, writes=True)
    aproblems = async_twin(problems)
