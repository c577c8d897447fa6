"""What a stream store is: it numbers, keeps and announces the messages of streams."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from reliable_cable.concurrency.on_commit import call_after_commit, report_failure
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage

T = TypeVar("T")

#: Where a stream stands that does not exist.
NOWHERE = StreamPosition("", 0)

#: Seconds for which a stream's epoch and tail outlive its newest message: 30 days (PROTOCOL.md, 8).
IDLE_STREAM_TTL = 30 * 86400.0

#: How long, in seconds, every entry stays readable for followers, whatever the history size.
YOUNG_TIME = 20.0
#: The most bytes of young entries that a stream keeps beyond its history size.
YOUNG_SIZE = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Message:
    """Something to be broadcast.

    Args:
        data: the payload as JSON text.
        exclude: the session id that must not receive it, or `""`.
        idempotency_key: a repeated append with the same key, to the same stream, stores nothing and returns the
            first one's position while the first one is kept; `""`: none.
    """

    data: str
    exclude: str = ""
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """Announces a numbered message. It may come late, twice, in disorder, or not at all."""

    stream: str
    epoch: str
    offset: int
    data: str
    exclude: str = ""


@dataclass(frozen=True, slots=True)
class Transient:
    """Announces a message without a position: to be delivered now or never."""

    stream: str
    data: str
    exclude: str = ""


@dataclass(frozen=True, slots=True)
class Advanced:
    """Announces that a stream may have moved on: read it."""

    stream: str


StreamEvent = Published | Transient | Advanced


def moved(was: StreamPosition, now: StreamPosition, tail: StreamPosition) -> bool:
    """Say whether a look at a stream's tail found something that was not announced.

    Args:
        was: the last position that had been announced when the look began.
        now: the same, when it ended.
        tail: what it found.
    """
    # Announced meanwhile: as it was then, or on the way to what is known now.
    overtaken = tail.epoch == now.epoch and was.offset <= tail.offset <= now.offset
    return tail != was and not overtaken


class StreamListener(ABC):
    """One hub's ear at a store. Made by `StreamStore.listen()`; used from one event loop."""

    @abstractmethod
    async def subscribe(self, stream: str) -> None:
        """Announce this stream's events from now on.

        Whatever is appended after this returned is announced, or found by reading once `Advanced` is announced.
        """

    @abstractmethod
    async def unsubscribe(self, stream: str) -> None:
        """Announce this stream's events no more."""

    @abstractmethod
    async def close(self) -> None:
        """Release everything this listener holds (tasks, connections)."""

    async def fence(self) -> None:
        """Wait until every event that was announced before this call has been delivered, or is known to be lost.

        A gap counts as lost only after a fence that began after the answer to a read of the store had arrived.
        """
        return None

    def doubt(self, stream: str) -> None:
        """Announce `Advanced` for this stream at the next check, unless the stream does not exist.

        Call this when a repair ended without reaching the position that was announced.
        """
        return None


class StreamStore(ABC):
    """Numbers, keeps and announces messages.

    Every kept message of a stream gets the next offset: 1, 2, 3, … without holes, in one epoch. An epoch never gives
    one offset twice. Times are seconds since 1970 by the clock of the store; a stream's entry times never decrease.

    Sync methods may be called from any thread, the a-prefixed twins from any event loop. An implementation provides
    the sync methods and `_run`, or overrides the twins where it can do better.

    Args:
        settings: sizes and times of history, by stream (`settings.policy(stream)`).
        clock: tells the time, in seconds since 1970.
    """

    #: Whether streams marked `durable` are kept as their setting promises.
    supports_durable: bool = False
    #: Whether it needs the tables of `settings.database`.
    uses_database: bool = False

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock

    @abstractmethod
    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, all or none, in this order, and announce them; return their positions.

        A stream whose policy has a history size of 0 takes none: use `publish_transient`.

        Raises:
            BroadcastError: nothing was stored.
            BroadcastUncertain: the answer was lost; repeat with the same idempotency key.
        """

    def append_on_commit(self, items: Sequence[tuple[str, Message]], using: str) -> None:
        """Store messages when the transaction that is open on database `using` commits; never if it does not.

        This implementation appends them after the commit, so a crash between the two loses them. An error is then
        logged, and signalled by `broadcast_failed`. A store on the transaction's database overrides this.

        Raises:
            BroadcastError: the messages could not be added to the transaction, or nothing can wait for its commit.
        """
        items = tuple(items)
        failed = partial(report_failure, type(self), [stream for stream, _ in items])
        call_after_commit(partial(self.append, items), [using], failed=failed)

    @abstractmethod
    def publish_transient(self, stream: str, message: Message) -> None:
        """Announce a message that is not kept, to every process."""

    @abstractmethod
    def whisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper: as `publish_transient`, but cheap: it may stay in this process."""

    @abstractmethod
    def read(
        self, stream: str, *, after: int, limit: int, known: StreamPosition | None = None, following: bool = False
    ) -> StreamPage:
        """Return up to `limit` kept entries with greater offsets than `after`, and the stream's state.

        The entries are in offset order; if `after + 1` is no longer kept they begin with the oldest that is.
        A stream that does not exist has the epoch `""`.

        Args:
            stream: its name.
            after: return greater offsets only.
            limit: the greatest number of entries to return.
            following: False: the reader returns after an absence. It is offered what the history size and TTL allow.
                True: the reader was never away. It is offered every entry that the store still has, at least those
                that are younger than `YOUNG_TIME`, up to `YOUNG_SIZE` bytes beyond the history size.
            known: a position of this epoch that the stream had at some time, and that the answer may stand at: a store
                with a copy that is quicker to read, and perhaps behind, can use that. None: as the stream stands now.
        """

    @abstractmethod
    def offset_since(self, stream: str, since: float) -> int | None:
        """Return the offset after which lies everything appended at or after `since`.

        None if some of that was trimmed or has expired. 0 for a stream that does not exist.
        """

    def position(self, stream: str) -> StreamPosition:
        """Return the position of the stream's newest message: `("", 0)` if it never had any."""
        page = self.read(stream, after=0, limit=0)
        return StreamPosition(page.epoch, page.tail)

    @abstractmethod
    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch; the next message begins another one at offset 1.

        Args:
            stream: its name.
            epoch: forget the stream only if this is still its epoch (a compare-and-set). `""`: whatever its epoch is.
                A hub passes the epoch of a stream whose store has proved to have lost messages.
        """

    def forget_all(self) -> int:
        """End the epoch of every stream, as `forget` does for one, in bounded steps; return the number of streams.

        Call this after every restore from a backup. Otherwise the store would give the offsets of lost messages to
        other messages in the same epoch. Messages waiting in an outbox survive.

        Raises:
            StoreError: the store could not be reached, or does not implement this.
        """
        raise StoreError(f"{type(self).__name__} cannot end the epochs of all streams: it does not have forget_all().")

    @abstractmethod
    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` entries that are past their stream's size or TTL; return how many went."""

    @abstractmethod
    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        """Return a listener that hands events to `deliver`, on the event loop that calls this.

        `deliver` is always called on that loop, in a callback of its own, never from inside another call here.
        """

    def time(self) -> float:
        """Return the present time by the store's clock, in seconds since 1970.

        Raises:
            StoreError: the store could not be reached.
        """
        return self.clock()

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clocks of the store's servers, by the servers' names.

        Each is a function that asks the server for its present time, in seconds since 1970. There are none where the
        store uses this host's clock.
        """
        return {}

    def problems(self) -> list[str]:
        """Say what about the store's surroundings breaks its promises; each a sentence with its remedy.

        Raises:
            StoreError: the store could not be asked.
        """
        return []

    def close(self) -> None:
        """Release what this store holds in this process; it may be used again."""
        return None

    async def aclose(self) -> None:
        """Release what this store holds on the running event loop; it may be used again."""
        return None

    @abstractmethod
    async def _run(self, call: Callable[[], T]) -> T:
        """Run a sync method of this store without blocking the event loop."""

    async def _run_write(self, call: Callable[[], T]) -> T:
        """Run a sync method that writes, and may have to wait for other writers, without blocking the event loop."""
        return await self._run(call)

    async def aappend(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Async twin of `append`."""
        return await self._run_write(partial(self.append, items))

    async def apublish_transient(self, stream: str, message: Message) -> None:
        """Async twin of `publish_transient`."""
        await self._run_write(partial(self.publish_transient, stream, message))

    async def awhisper(self, stream: str, message: Message) -> None:
        """Async twin of `whisper`."""
        await self._run(partial(self.whisper, stream, message))

    async def aread(
        self, stream: str, *, after: int, limit: int, known: StreamPosition | None = None, following: bool = False
    ) -> StreamPage:
        """Async twin of `read`."""
        return await self._run(partial(self.read, stream, after=after, limit=limit, known=known, following=following))

    async def aoffset_since(self, stream: str, since: float) -> int | None:
        """Async twin of `offset_since`."""
        return await self._run(partial(self.offset_since, stream, since))

    async def aposition(self, stream: str) -> StreamPosition:
        """Async twin of `position`."""
        return await self._run(partial(self.position, stream))

    async def aforget(self, stream: str, *, epoch: str = "") -> None:
        """Async twin of `forget`."""
        await self._run_write(partial(self.forget, stream, epoch=epoch))

    async def atime(self) -> float:
        """Async twin of `time`."""
        return await self._run(self.time)

    async def aproblems(self) -> list[str]:
        """Async twin of `problems`."""
        return await self._run(self.problems)

    async def aprune(self, *, limit: int = 1000) -> int:
        """Async twin of `prune`."""
        return await self._run_write(partial(self.prune, limit=limit))
