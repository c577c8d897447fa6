"""The base class of stream stores, which number, store and announce the messages of streams."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from reliable_cable.concurrency.on_commit import call_after_commit
from reliable_cable.conf import IDLE_STREAM_TTL as IDLE_STREAM_TTL
from reliable_cable.exceptions import BroadcastError, StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.base import Listener, async_twin

from .failures import report_failure
from .sharding import PartedStore

#: The position of a stream that does not exist.
NOWHERE = StreamPosition("", 0)

#: A time, in seconds since 1970. A call of `offset_since` with this time or an earlier time asks for all messages of
#: the current epoch, even if messages of earlier epochs were lost.
LONG_AGO = 86400.0

#: The maximum age, in seconds, of young entries. Followers, which read a stream without a break, can read young entries
#: even if these are beyond the history size.
YOUNG_TIME = 20.0
#: The maximum total size, in bytes, of the young entries that a stream stores beyond its history size.
YOUNG_SIZE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Message:
    """A message to broadcast.

    Args:
        data: the payload as JSON text.
        exclude: the id of the session that must not receive the message; `""` if all sessions may receive it.
        idempotency_key: the idempotency key; `""` if there is none. If the history of the stream contains a message
            with the same key, an append does not store this message, and returns the position of the stored one.
    """

    data: str
    exclude: str = ""
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """The event for a message that was stored. The event may arrive late, twice, out of order, or never."""

    stream: str
    epoch: str
    entry: Entry

    @property
    def position(self) -> StreamPosition:
        """The position of the message."""
        return StreamPosition(self.epoch, self.entry.offset)


@dataclass(frozen=True, slots=True)
class Transient:
    """The event for a transient message, which is not stored.

    Args:
        stream: the name of the stream.
        data: the payload as JSON text.
        exclude: the id of the session that must not receive the message; `""` if all sessions may receive it.
        whisper: whether a client has sent the message. Whispers are not sent to a client that receives too slowly.
    """

    stream: str
    data: str
    exclude: str = ""
    whisper: bool = False


@dataclass(frozen=True, slots=True)
class Advanced:
    """The event for a stream that may have new messages or a new epoch. The receiver must read the stream."""

    stream: str


StreamEvent = Published | Transient | Advanced


def moved(was: StreamPosition, now: StreamPosition, tail: StreamPosition) -> bool:
    """Return whether a read of a stream's tail has found messages, or a new epoch, that were not announced.

    Args:
        was: the newest announced position when the read began.
        now: the newest announced position when the read ended.
        tail: the position that the read has returned.
    """
    # If messages were announced during the read, the tail may be older than `now`. Such a tail reveals nothing new.
    overtaken = tail.epoch == now.epoch and was.offset <= tail.offset <= now.offset
    return tail != was and not overtaken


class StreamListener(Listener):
    """Receives the events of a stream store. `StreamStore.listen` returns a listener.

    Each message that is appended after `subscribe` has returned causes an event. The event is `Published` with the
    message, or `Advanced`, after which a read of the stream returns the message.
    """

    async def fence(self) -> None:
        """Wait until all events that were announced before this call have been delivered, or are known to be lost.

        If messages were stored, but their events have not arrived, the events may be late or lost. To find out, read
        the messages from the store, then call this method. Events that have not arrived when it returns are lost.
        """

    def doubt(self, stream: str) -> None:
        """Announce `Advanced` for a stream at the next regular check of its position, if the stream exists.

        Call this if a message was announced, but the store does not have it, perhaps because of a failover.
        """


class StreamStore(PartedStore):
    """Base class of the stores that number, store and announce messages.

    In each epoch, the stored messages of a stream have the offsets 1, 2, 3, … without holes. An offset is never used
    twice in an epoch. Times are in seconds since 1970 by the store's clock. The times of a stream's entries never
    decrease.

    `settings.policy(stream)` returns the history settings of a stream.
    """

    #: Whether the store supports the option `durable` of streams.
    supports_durable: bool = False

    @abstractmethod
    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, announce them, and return their positions. Either all messages are stored, or none.

        For streams with a history size of 0, call `publish_transient` instead.

        A store that numbers no messages returns `NOWHERE` for each of them.

        Args:
            items: pairs of a stream's name and a message, in the order in which the messages are numbered.

        Raises:
            BroadcastError: nothing was stored.
            BroadcastUncertain: the response was lost, so that the messages may or may not have been stored. The append
                can safely be repeated with the same idempotency keys.
        """

    def require_history(self, streams: Iterable[str]) -> None:
        """Check that streams have a history, so that messages can be appended to them.

        Raises:
            BroadcastError: a stream has a history size of 0.
        """
        for stream in streams:
            if not self.settings.policy(stream).history_size:
                raise BroadcastError(f"The stream {stream!r} keeps no history; publish to it as a transient message.")

    def append_on_commit(self, items: Sequence[tuple[str, Message]], using: str) -> None:
        """Store messages if the open transaction on the database `using` commits.

        This implementation appends the messages after the commit. If the process crashes between the commit and the
        append, the messages are lost. If the append fails, the error is logged, and the signal `broadcast_failed` is
        sent. A store in the same database should override this method, and store the messages in the transaction.

        Raises:
            BroadcastError: the messages could not be added to the transaction, or Django runs no `on_commit` hooks for
                the transaction.
        """
        items = tuple(items)
        failed = partial(report_failure, type(self), [stream for stream, _ in items])
        call_after_commit(partial(self.append, items), [using], failed=failed)

    @abstractmethod
    def publish_transient(self, stream: str, message: Message) -> None:
        """Announce a message to all processes, without storing it."""

    def publish_transients(self, items: Sequence[tuple[str, Message]]) -> None:
        """Announce several messages, in the given order, without storing them.

        A subclass should override this method and its async version if it can announce several messages in one round
        trip.
        """
        for stream, message in items:
            self.publish_transient(stream, message)

    async def apublish_transients(self, items: Sequence[tuple[str, Message]]) -> None:
        """Async version of `publish_transients`."""
        for stream, message in items:
            await self.apublish_transient(stream, message)

    def whisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper.

        A whisper is a transient message. Because whispers must cost little, the store may announce them only in this
        process.
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
        """Return up to `limit` stored entries whose offsets are greater than `after`, and the stream's state.

        The entries are in the order of their offsets. If the entry `after + 1` is no longer stored, the entries begin
        with the oldest stored one. A stream that does not exist has the epoch `""`.

        Args:
            stream: the name of the stream.
            after: the offset after which the entries begin.
            limit: the maximum number of entries to return.
            max_size: the approximate size, in bytes, after which no more entries are returned. At least one entry is
                returned. None means no such limit.
            known: a position that the stream has had in its current epoch. If the store has a faster copy of the stream
                that reaches this position, the store may return the state of the copy, which may be slightly out of
                date. None requests the current state.
            following: whether the reader is a follower, which has read the stream without a break. Followers get all
                entries that the store still has, including the young entries (see `YOUNG_TIME`). Other readers get
                only the entries within the history size and the TTL.
        """

    @abstractmethod
    def offset_since(self, stream: str, since: float) -> int | None:
        """Return the offset of the last message before a time, so that all messages since this time can be read.

        Args:
            stream: the name of the stream.
            since: the time, in seconds since 1970.

        Returns:
            The offset in the current epoch; 0 if the epoch has no message from before this time. None if messages since
            this time were trimmed, have expired, or belong to an epoch that has ended. For a stream that does not
            exist, the result is None if it may have been deleted since this time (see `deleted_after`), otherwise 0.
        """

    def deleted_after(self, stream: str) -> float | None:
        """Return the time, in seconds, from a stream's newest message to the deletion of the stream.

        None means that the time is `IDLE_STREAM_TTL` or longer. In this case, `offset_since` assumes that a stream that
        does not exist has never existed.
        """
        ttl = self.settings.policy(stream).history_meta_ttl
        return ttl if ttl < IDLE_STREAM_TTL else None

    async def alineage(self, *, durable: bool = False) -> str:
        """Return the lineage of the data. A lineage is the name of an unbroken data set.

        The lineage changes if stored messages may have been lost, for example by a failover or a restored backup.

        Args:
            durable: True for the lineage of durable streams; False for the lineage of all other streams.

        Returns:
            The lineage; `""` if it is unknown.
        """
        return ""

    async def alineages(self, streams: Collection[str]) -> list[str]:
        """Return the lineage of the data of each stream, see `alineage`.

        A subclass overrides this method if the streams are in several data sets, such as the nodes of a cluster.
        """
        durable = {stream: self.settings.policy(stream).durable for stream in streams}
        lineages = {each: await self.alineage(durable=each) for each in set(durable.values())}
        return [lineages[durable[stream]] for stream in streams]

    def position(self, stream: str) -> StreamPosition:
        """Return the position of the stream's newest message; `("", 0)` if the stream does not exist."""
        page = self.read(stream, after=0, limit=0)
        return StreamPosition(page.epoch, page.tail)

    async def apositions(self, streams: Collection[str]) -> list[StreamPosition]:
        """Return the positions of several streams.

        A subclass should override this method if it can read several positions in one round trip.
        """
        return [await self.aposition(stream) for stream in streams]

    @abstractmethod
    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history, and begin a new epoch, in which the next message has the offset 1.

        The new epoch begins at once, not with the next message. Its id is made by `positions.later_epoch`. The id shows
        that there were earlier messages. So a subscriber that subscribed before the stream's first message is told that
        messages are missing. If the stream does not exist, nothing changes.

        Args:
            stream: the name of the stream.
            epoch: the epoch to end; `""` for any epoch. If the stream has another epoch, nothing is deleted. A hub
                passes the epoch in which it has found a loss of messages.
        """

    def forget_all(self) -> int:
        """End the epochs of all streams, as `forget` does for a single stream. Return the number of streams.

        Call this method after a backup was restored. Without this call, new messages would get the epoch and the
        offsets of messages that the backup lacks. Messages in the transactional outbox are not deleted. An
        implementation must not block other calls for long.

        Raises:
            StoreError: the store could not be reached, or does not implement this method.
        """
        raise StoreError(f"{type(self).__name__} cannot end the epochs of all streams: it does not have forget_all().")

    @abstractmethod
    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` entries beyond their stream's history size or TTL. Return the exact number."""

    @abstractmethod
    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        """Return a listener that calls `deliver` with events on the running event loop.

        `deliver` is never called from inside a method of the listener or of the store.
        """

    def number_outbox(self, streams: Collection[str] | None = None) -> None:
        """Number the committed messages in the transactional outbox. A store without an outbox does nothing.

        Args:
            streams: the names of the streams whose messages are numbered. None means all streams.

        Raises:
            BroadcastError: some messages could not be numbered. They remain in the outbox.
        """

    def problems(self) -> list[str]:
        """Return the problems of the store's server that break guarantees of the store.

        Each problem is a sentence that names a remedy.

        Raises:
            StoreError: the store could not be reached.
        """
        return []

    def notes(self) -> list[str]:
        """Return the sentences about the store's servers that `manage.py cable_doctor` prints.

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
