"""The stream store in Redis, except for `durable` streams, which it stores in the database.

So durable streams survive the loss of Redis. The model store numbers their messages, and its tables are authoritative.
It announces the messages to the listeners of this process directly. A background thread pushes the messages to Redis,
which stores the newest ones (the *hot tail*) and announces them to other processes. If Redis fails, other processes
find the messages by polling.
"""

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from typing import Final, Self

from reliable_cable.concurrency.background import BackgroundWorker
from reliable_cable.concurrency.on_commit import check_hooks
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError
from reliable_cable.logs import logger
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.stores.redis.exchange import finish

from .base import Message, Published, StreamEvent
from .model import ModelStreamStore
from .model_polling import PollingListener
from .redis import RedisStreamStore
from .redis_listener import RedisStreamListener

Item = tuple[str, Message]

#: The minimum time, in seconds, between two polls of the tables while Redis announces messages. The polls find messages
#: that a process has stored, but has not pushed to Redis, because it crashed.
SLOW_POLL_INTERVAL: Final = 1.0
#: How long, in seconds, durable streams use only the database after a failure of Redis.
REDIS_PAUSE: Final = 1.0
#: How long, in seconds, an async read waits for the hot tail. After this time, it reads the database instead.
HOT_TAIL_TIMEOUT: Final = 1.0
#: The maximum total size, in bytes, of the messages that are waiting to be pushed. Above this size, the oldest ones are
#: not pushed. Other processes then find them by polling.
MAX_PUSH_BYTES: Final = 16 * 1024 * 1024
#: How long, in seconds, `close` and the exit of the interpreter wait until all messages have been pushed.
PUSH_TIMEOUT: Final = 1.0


class DurableStreamStore(RedisStreamStore):
    """Stores streams in Redis, except for `durable` streams, which it stores in the database.

    Redis also has a copy of the newest messages of durable streams.

    Args:
        settings: the settings for the database and for Redis.
        clock: a clock for tests, which returns seconds since 1970. It replaces the clocks of both stores.
    """

    supports_durable = True
    uses_database = True

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock)
        self._model = ModelStreamStore(settings, clock=clock, announce=self._announce)
        self._pusher: BackgroundWorker[StreamEvent] = BackgroundWorker(
            "cable-pusher", self._push_all, exit_timeout=PUSH_TIMEOUT, max_bytes=MAX_PUSH_BYTES, size_of=_size
        )
        self._pause = _Pause()

    @cached_property
    def blocking(self) -> Self:
        """A copy of this store for sync code. Its async methods block the thread and never suspend."""
        store = super().blocking
        store._model = self._model.blocking
        return store

    @property
    def place(self) -> str:
        """Where the data are stored, as a string for error messages."""
        return f"{super().place} (durable streams: {self._model.place})"

    def _is_durable(self, stream: str) -> bool:
        return self.settings.policy(stream).durable

    # -- appending ----------------------------------------------------------------------------------------------------

    async def aappend(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages in the given order, announce them, and return their positions.

        Raises:
            BroadcastError: nothing was stored.
            BroadcastUncertain: the response was lost, or only the messages of streams that are not durable were stored.
        """
        durable, others = self._split(items)
        in_redis = iter(await super().aappend(others))
        with _half_stored(others):
            in_models = iter(await self._model.aappend(durable) if durable else ())
        return [next(in_models if self._is_durable(stream) else in_redis) for stream, _ in items]

    def append_on_commit(self, items: Sequence[tuple[str, Message]], using: str) -> None:
        """Store messages if the open transaction on the database `using` commits.

        If `using` is `settings.database`, the messages of durable streams are stored in the transaction itself.
        """
        durable, others = self._split(items) if using == self.settings.database else ([], items)
        if others:
            # The check may raise an error, so it must precede the writes.
            check_hooks([using])
        if durable:
            self._model.append_on_commit(durable, using)
        if others:
            super().append_on_commit(others, using)

    def _split(self, items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """Return the items of durable streams, and the items of other streams."""
        durable = [item for item in items if self._is_durable(item[0])]
        return durable, [item for item in items if not self._is_durable(item[0])]

    # -- reading ------------------------------------------------------------------------------------------------------

    async def aread(
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

        If `known` is given, and the hot tail in Redis has all entries from `after + 1` up to this position, the entries
        are read from the hot tail. In all other cases, they are read from the database.
        """
        if not self._is_durable(stream):
            return await super().aread(stream, after=after, limit=limit, max_size=max_size, following=following)
        if known is not None and not self._pause.active:
            try:
                async with self.client.timeout(HOT_TAIL_TIMEOUT):
                    page = await super().aread(stream, after=after, limit=limit, max_size=max_size, following=following)
            except TimeoutError:
                self._pause.begin(StoreError(f"Redis did not answer within {HOT_TAIL_TIMEOUT:g} s."))
            except StoreError as error:
                self._pause.begin(error)
            else:
                if _covers(page, after, known):
                    return page
        return await self._model.aread(stream, after=after, limit=limit, max_size=max_size, following=following)

    async def alineages(self, streams: Collection[str]) -> list[str]:
        """Return the lineage of each stream's data. Durable streams are in the database, all others in Redis."""
        others = [stream for stream in streams if not self._is_durable(stream)]
        in_redis = iter(await super().alineages(others))
        in_models = await self._model.alineage() if len(others) < len(streams) else ""
        return [in_models if self._is_durable(stream) else next(in_redis) for stream in streams]

    def shard(self, stream: str) -> str:
        """Return the partition of a stream in a Redis Cluster; `""` for a durable stream, and on a single server."""
        return "" if self._is_durable(stream) else super().shard(stream)

    async def aposition(self, stream: str) -> StreamPosition:
        """Return the position of the stream's newest message."""
        if self._is_durable(stream):
            return await self._model.aposition(stream)
        return await super().aposition(stream)

    async def apositions(self, streams: Collection[str]) -> list[StreamPosition]:
        """Return the positions of several streams, with few round trips to each of the two stores."""
        durable = [stream for stream in streams if self._is_durable(stream)]
        others = [stream for stream in streams if not self._is_durable(stream)]
        in_models = iter(await self._model.apositions(durable) if durable else ())
        in_redis = iter(await super().apositions(others) if others else ())
        return [next(in_models if self._is_durable(stream) else in_redis) for stream in streams]

    async def aoffset_since(self, stream: str, since: float) -> int | None:
        """Return the offset of the last message before a time; None if some of the messages since then are gone."""
        if self._is_durable(stream):
            return await self._model.aoffset_since(stream, since)
        return await super().aoffset_since(stream, since)

    # -- deleting -----------------------------------------------------------------------------------------------------

    async def aforget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch."""
        if self._is_durable(stream):
            await self._model.aforget(stream, epoch=epoch)
        else:
            await super().aforget(stream, epoch=epoch)

    def forget_all(self) -> int:
        """End the epochs of all streams in both stores, and return the number of streams.

        A durable stream may be counted twice.
        """
        # The hot tails of forgotten durable streams are deleted in the background. Hot tails that have not been deleted
        # yet are counted as streams in Redis.
        return self._model.forget_all() + super().forget_all()

    def number_outbox(self, streams: Collection[str] | None = None) -> None:
        """Number the committed messages of durable streams in the outbox."""
        self._model.number_outbox(streams)

    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` old database rows, and return how many were deleted."""
        return self._model.prune(limit=limit)

    async def atime(self) -> float:
        """Return the time by the clock of Redis or the database, whichever is earlier."""
        return min(await super().atime(), await self._model.atime())

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clocks of Redis and, on PostgreSQL, of the database."""
        return {**super().clocks(), **self._model.clocks()}

    def close(self) -> None:
        """Push the pending messages, and release the resources of both stores in this process."""
        self._pusher.flush(PUSH_TIMEOUT)
        super().close()
        self._model.close()

    # -- announcing ---------------------------------------------------------------------------------------------------

    def _announce(self, events: Sequence[StreamEvent]) -> None:
        """Announce events in this process now. Push them to Redis in the background, so that callers need not wait."""
        self._model.bus.publish(events)
        if not self._pause.active:
            self._pusher.put(events)

    def _push_all(self, events: Sequence[StreamEvent]) -> Sequence[StreamEvent]:
        """Push messages to Redis in the given order. For an `Advanced` event, delete the stream's hot tail in Redis.

        After a failure of Redis, the events are dropped.
        """
        if not self._pause.active:
            try:
                for numbered, group in groupby(events, lambda event: isinstance(event, Published)):
                    if numbered:
                        self.push([event for event in group if isinstance(event, Published)])
                    else:
                        for event in group:
                            finish(RedisStreamStore.aforget(self.blocking, event.stream))
            except StoreError as error:
                self._pause.begin(error)
        return ()

    def listen(self, deliver: Callable[[StreamEvent], None]) -> RedisStreamListener:
        """Return a listener that calls `deliver` with events on the running event loop."""
        return _Listener(self, self._model, deliver)


class _Pause:
    """The period after a failure of Redis in which durable streams use only the database."""

    def __init__(self) -> None:
        self._end = 0.0

    @property
    def active(self) -> bool:
        return time.monotonic() < self._end

    def begin(self, error: StoreError) -> None:
        if not self.active:
            logger.warning("Durable streams continue without Redis, more slowly, until it works again: %s", error)
        self._end = time.monotonic() + REDIS_PAUSE


@contextmanager
def _half_stored(others: Sequence[Item]) -> Iterator[None]:
    """Convert an error of the model store to `BroadcastUncertain` if Redis has stored other messages of the batch."""
    try:
        yield
    except BroadcastError as error:
        if not others:
            raise
        raise BroadcastUncertain(
            f"The messages to durable streams were not stored, but the other messages of the batch were: {error}"
        ) from error


def _size(event: StreamEvent) -> int:
    """Return the approximate size of an event in memory, in bytes."""
    return sys.getsizeof(event.entry.data) if isinstance(event, Published) else 0


def _covers(page: StreamPage, after: int, known: StreamPosition) -> bool:
    """Return whether a page of the hot tail can replace a read of the database (see `aread`)."""
    return page.epoch == known.epoch and page.tail >= max(known.offset, after) and page.low <= after + 1


class _Listener(RedisStreamListener):
    """Receives the events of all streams from Redis, and also polls the tables for durable streams.

    The listener polls less often while it is connected to Redis.
    """

    def __init__(
        self, redis: RedisStreamStore, model: ModelStreamStore, deliver: Callable[[StreamEvent], None]
    ) -> None:
        super().__init__(redis.client, redis.tails, self._deliver_new)
        self._settings = redis.settings
        self._deliver_event = deliver
        self._tables = PollingListener(model, model.bus, deliver, interval=self._interval, wakeups=False)

    def _interval(self) -> float:
        interval = self._settings.poll_interval
        return max(interval, SLOW_POLL_INTERVAL) if self._pubsub.connected else interval

    def _deliver_new(self, event: StreamEvent) -> None:
        # This process's messages to durable streams were already delivered, because the model store has announced them
        # directly.
        if self._tables.note(event):
            self._deliver_event(event)

    async def subscribe(self, stream: str) -> None:
        """Start to announce the events of a stream."""
        try:
            await self.subscribe_many([stream])
        except BaseException:
            await super().unsubscribe(stream)
            raise

    async def subscribe_many(self, streams: Collection[str]) -> None:
        """Start to announce the events of several streams, with few round trips to each of the two stores."""
        await super().subscribe_many(streams)
        await self._tables.subscribe_many([stream for stream in streams if self._settings.policy(stream).durable])

    async def unsubscribe(self, stream: str) -> None:
        """Stop announcing the events of a stream."""
        await super().unsubscribe(stream)
        await self._tables.unsubscribe(stream)

    def doubt(self, stream: str) -> None:
        """Announce `Advanced` for a stream at the next regular check of its position, if the stream exists."""
        super().doubt(stream)
        self._tables.doubt(stream)

    async def close(self) -> None:
        """Unsubscribe from all streams."""
        await super().close()
        await self._tables.close()
