"""The stream store in Redis that also stores `durable` streams in the database, so that they survive a loss of Redis.

The model store numbers the messages of durable streams, and its tables are authoritative. It announces numbered
messages to the listeners of this process directly. A background thread pushes the messages to Redis, which stores the
newest ones (the *hot tail*) and announces them to other processes. If that fails, other processes find the messages by
polling.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Final, TypeVar

from reliable_cable.concurrency.background import BackgroundWorker
from reliable_cable.concurrency.on_commit import check_hooks
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage

from .base import Message, Published, StreamEvent, StreamListener, StreamStore
from .model import ModelStreamStore
from .model_polling import PollingListener
from .redis import RedisStreamStore
from .redis_listener import RedisStreamListener

T = TypeVar("T")
Item = tuple[str, Message]
logger = logging.getLogger("reliable_cable")

#: How often, in seconds, to poll the tables while Redis announces messages. The polls find messages that were not
#: pushed to Redis because of a crash.
SLOW_POLL_INTERVAL: Final = 1.0
#: How long, in seconds, to use only the database for durable streams after a failure of Redis.
REDIS_PAUSE: Final = 1.0
#: How long, in seconds, an async read waits for the hot tail before it reads the database instead.
HOT_TAIL_TIMEOUT: Final = 1.0
#: The most bytes of pending messages for Redis. Beyond that, the oldest ones are dropped.
MAX_PUSH_BYTES: Final = 16 * 1024 * 1024
#: How long, in seconds, `close` and the exit of the interpreter wait until the pending messages are pushed.
PUSH_TIMEOUT: Final = 1.0


class DurableStreamStore(StreamStore):
    """Stores streams in Redis, and `durable` streams in the database, with a copy of their newest messages in Redis.

    Args:
        settings: the settings of both stores.
        clock: replaces the clocks of both stores in tests, in seconds since 1970.
    """

    supports_durable = True
    uses_database = True

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock or time.time)
        self._redis = RedisStreamStore(settings, clock=clock)
        self._model = ModelStreamStore(settings, clock=clock, announce=self._announce)
        self._pusher: BackgroundWorker[StreamEvent] = BackgroundWorker(
            "cable-pusher", self._push, exit_timeout=PUSH_TIMEOUT, max_bytes=MAX_PUSH_BYTES, size_of=_size
        )
        self._paused_until = 0.0

    def _is_durable(self, stream: str) -> bool:
        return self.settings.policy(stream).durable

    def _store(self, stream: str) -> StreamStore:
        return self._model if self._is_durable(stream) else self._redis

    # -- appending ----------------------------------------------------------------------------------------------------

    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, in this order, and announce them; return their positions.

        Raises:
            BroadcastError: nothing was stored.
            BroadcastUncertain: the response was lost, or the batch goes to both stores and only Redis stored its part.
        """
        durable, others = self._split(items)
        in_redis = self._redis.append(others) if others else []
        with _half_stored(others):
            in_models = self._model.append(durable) if durable else []
        return self._merge(items, in_models, in_redis)

    async def aappend(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Async twin of `append`. It waits for Redis without a thread."""
        durable, others = self._split(items)
        in_redis = await self._redis.aappend(others) if others else []
        with _half_stored(others):
            in_models = await self._model.aappend(durable) if durable else []
        return self._merge(items, in_models, in_redis)

    def append_on_commit(self, items: Sequence[tuple[str, Message]], using: str) -> None:
        """Store messages if the open transaction on database `using` commits.

        If that is `settings.database`, the messages of durable streams are stored in the transaction itself.
        """
        durable, others = self._split(items) if using == self.settings.database else ([], items)
        if others:
            # This check comes before anything is written.
            check_hooks([using])
        if durable:
            self._model.append_on_commit(durable, using)
        if others:
            super().append_on_commit(others, using)

    def _split(self, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """Return the items of durable streams, and the others."""
        durable = [item for item in items if self._is_durable(item[0])]
        return durable, [item for item in items if not self._is_durable(item[0])]

    def _merge(
        self, items: Sequence[Item], in_models: Iterable[StreamPosition], in_redis: Iterable[StreamPosition]
    ) -> list[StreamPosition]:
        """Return the positions of all items in their order."""
        durable, others = iter(in_models), iter(in_redis)
        return [next(durable if self._is_durable(stream) else others) for stream, _ in items]

    def publish_transient(self, stream: str, message: Message) -> None:
        """Announce a message to every process, without keeping it."""
        self._redis.publish_transient(stream, message)

    async def apublish_transient(self, stream: str, message: Message) -> None:
        """Async twin of `publish_transient`."""
        await self._redis.apublish_transient(stream, message)

    def whisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper to every process."""
        self._redis.whisper(stream, message)

    async def awhisper(self, stream: str, message: Message) -> None:
        """Async twin of `whisper`."""
        await self._redis.awhisper(stream, message)

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(
        self, stream: str, *, after: int, limit: int, known: StreamPosition | None = None, following: bool = False
    ) -> StreamPage:
        """Return up to `limit` kept entries with greater offsets than `after`, and the stream's state.

        The hot tail is used if it has all entries from `after` to the position `known`. Otherwise the database is read.
        """
        if not self._is_durable(stream):
            return self._redis.read(stream, after=after, limit=limit, following=following)
        if known is not None and not self._paused:
            try:
                page = self._redis.read(stream, after=after, limit=limit, following=following)
            except StoreError as error:
                self._pause(error)
            else:
                if _covers(page, after, known):
                    return page
        return self._model.read(stream, after=after, limit=limit, following=following)

    async def aread(
        self, stream: str, *, after: int, limit: int, known: StreamPosition | None = None, following: bool = False
    ) -> StreamPage:
        """Async twin of `read`."""
        if not self._is_durable(stream):
            return await self._redis.aread(stream, after=after, limit=limit, following=following)
        if known is not None and not self._paused:
            try:
                async with asyncio.timeout(HOT_TAIL_TIMEOUT):
                    page = await self._redis.aread(stream, after=after, limit=limit, following=following)
            except TimeoutError:
                self._pause(StoreError(f"Redis did not answer within {HOT_TAIL_TIMEOUT:g} s."))
            except StoreError as error:
                self._pause(error)
            else:
                if _covers(page, after, known):
                    return page
        return await self._model.aread(stream, after=after, limit=limit, following=following)

    def position(self, stream: str) -> StreamPosition:
        """Return the position of the stream's newest message."""
        return self._store(stream).position(stream)

    async def aposition(self, stream: str) -> StreamPosition:
        """Async twin of `position`."""
        return await self._store(stream).aposition(stream)

    def offset_since(self, stream: str, since: float) -> int | None:
        """Return the offset before the first message since a time, or None if some of them are gone."""
        return self._store(stream).offset_since(stream, since)

    async def aoffset_since(self, stream: str, since: float) -> int | None:
        """Async twin of `offset_since`."""
        return await self._store(stream).aoffset_since(stream, since)

    # -- deleting -----------------------------------------------------------------------------------------------------

    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch."""
        self._store(stream).forget(stream, epoch=epoch)

    async def aforget(self, stream: str, *, epoch: str = "") -> None:
        """Async twin of `forget`."""
        await self._store(stream).aforget(stream, epoch=epoch)

    def forget_all(self) -> int:
        """End the epoch of every stream in both stores; return the number of streams.

        A durable stream may be counted twice.
        """
        # The durable streams are first. Their hot tails are then deleted from Redis in the background. A hot tail that
        # is still there counts as a stream of Redis.
        return self._model.forget_all() + self._redis.forget_all()

    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` rows that exceed a size or TTL; return how many were deleted."""
        return self._model.prune(limit=limit)

    def time(self) -> float:
        """Return the earlier of the times by Redis's and by the database's clock, so that it is ahead of neither."""
        return min(self._redis.time(), self._model.time())

    async def atime(self) -> float:
        """Async twin of `time`."""
        return min(await self._redis.atime(), await self._model.atime())

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clocks of Redis and, on PostgreSQL, of the database."""
        return {**self._redis.clocks(), **self._model.clocks()}

    def problems(self) -> list[str]:
        """Return the faults of the Redis server that break the store's promises."""
        return self._redis.problems()

    def close(self) -> None:
        """Push the pending messages, and release the resources of both stores in this process."""
        self._pusher.flush(PUSH_TIMEOUT)
        self._redis.close()
        self._model.close()

    async def aclose(self) -> None:
        """Release the resources of both stores on the running event loop."""
        await self._redis.aclose()

    # -- announcing ---------------------------------------------------------------------------------------------------

    def _announce(self, events: Sequence[StreamEvent]) -> None:
        """Announce events in this process now, and push them to Redis in the background, so that no caller waits."""
        self._model.bus.publish(events)
        if not self._paused:
            self._pusher.put(events)

    def _push(self, events: Sequence[StreamEvent]) -> Sequence[StreamEvent]:
        """Send events to Redis in their order, or drop them while Redis fails."""
        if not self._paused:
            try:
                for numbered, group in groupby(events, lambda event: isinstance(event, Published)):
                    if numbered:
                        self._redis.push([event for event in group if isinstance(event, Published)])
                    else:
                        for event in group:
                            self._redis.forget(event.stream)
            except StoreError as error:
                self._pause(error)
        return ()

    @property
    def _paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _pause(self, error: StoreError) -> None:
        if not self._paused:
            logger.warning("Durable streams continue without Redis, more slowly, until it works again: %s", error)
        self._paused_until = time.monotonic() + REDIS_PAUSE

    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        """Return a listener that calls `deliver` with events on the running event loop."""
        return _Listener(self._redis, self._model, deliver)

    async def _run(self, call: Callable[[], T]) -> T:
        return await self._model._run(call)

    async def _run_write(self, call: Callable[[], T]) -> T:
        return await self._model._run_write(call)


@contextmanager
def _half_stored(others: Sequence[Item]) -> Iterator[None]:
    """Turn an error of the model store into `BroadcastUncertain` if Redis has stored its part of the batch."""
    try:
        yield
    except BroadcastError as error:
        if not others:
            raise
        raise BroadcastUncertain(
            f"Only the messages to streams that are not durable were stored, not those to durable streams: {error}"
        ) from error


def _size(event: StreamEvent) -> int:
    """Return about how many bytes of memory an event takes."""
    return sys.getsizeof(event.entry.data) if isinstance(event, Published) else 0


def _covers(page: StreamPage, after: int, known: StreamPosition) -> bool:
    """Return whether the hot tail has all entries between an offset and a known position."""
    return page.epoch == known.epoch and page.tail >= max(known.offset, after) and page.low <= after + 1


class _Listener(StreamListener):
    """Listens to Redis for all streams, and polls the tables for durable streams, slowly while Redis is connected."""

    def __init__(
        self, redis: RedisStreamStore, model: ModelStreamStore, deliver: Callable[[StreamEvent], None]
    ) -> None:
        self._settings = redis.settings
        self._deliver = deliver
        self._redis: RedisStreamListener = redis.listen(self._receive)
        self._tables = PollingListener(model, model.bus, deliver, interval=self._interval, wakeups=False)

    def _interval(self) -> float:
        interval = self._settings.poll_interval
        return max(interval, SLOW_POLL_INTERVAL) if self._redis.connected else interval

    def _receive(self, event: StreamEvent) -> None:
        # The bus has already announced the messages of this process.
        if self._tables.note(event):
            self._deliver(event)

    async def subscribe(self, stream: str) -> None:
        """Start to announce the events of a stream."""
        await self._redis.subscribe(stream)
        if self._settings.policy(stream).durable:
            try:
                await self._tables.subscribe(stream)
            except BaseException:
                await self._redis.unsubscribe(stream)
                raise

    async def unsubscribe(self, stream: str) -> None:
        """Stop announcing the events of a stream."""
        await self._redis.unsubscribe(stream)
        await self._tables.unsubscribe(stream)

    async def fence(self) -> None:
        """Wait until every event that was announced before this call has been delivered, or is known to be lost."""
        await self._redis.fence()
        await self._tables.fence()

    def doubt(self, stream: str) -> None:
        """Announce `Advanced` for a stream at the next check, unless the stream does not exist."""
        self._redis.doubt(stream)
        self._tables.doubt(stream)

    async def close(self) -> None:
        """Unsubscribe from all streams."""
        await self._redis.close()
        await self._tables.close()
