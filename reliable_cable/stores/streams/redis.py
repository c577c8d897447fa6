"""The stream store in Redis: a hash and a Redis stream for each stream, changed by Lua scripts, one round trip each."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.redis.client import LINEAGE, Argument, Call, RedisRefused, RedisUnavailable, client_for
from reliable_cable.stores.redis.doctor import find_problems
from reliable_cable.stores.redis.keys import stream_channel, stream_tag
from reliable_cable.stores.redis.pubsub import pubsub_of

from .base import IDLE_STREAM_TTL, YOUNG_SIZE, YOUNG_TIME, Message, Published, StreamEvent, StreamStore
from .redis_listener import RedisStreamListener

T = TypeVar("T")
logger = logging.getLogger("reliable_cable")

#: Seconds for which an append whose answer was lost is tried again.
RETRY_TIME: Final = 8.0
RETRY_DELAY: Final = 0.05

#: Streams that one look asks for at once.
BATCH: Final = 500


class _Append:
    """One append, over all its tries: what is sent, and when it was first tried."""

    def __init__(self, store: RedisStreamStore, items: Sequence[tuple[str, Message]]) -> None:
        names = list(dict.fromkeys(name for name, _ in items))
        for name in names:
            if not store.settings.policy(name).history_size:
                raise BroadcastError(f"The stream {name!r} keeps no history; publish to it as a transient message.")
        numbers = {name: number for number, name in enumerate(names, 1)}
        self._keys = [key for name in names for key in store.keys(name)]
        self._now = store.now
        self._id: list[Argument] = [secrets.token_hex(8), base64.b64encode(secrets.token_bytes(9)).decode()]
        self._rest: list[Argument] = [int(IDLE_STREAM_TTL), YOUNG_TIME, YOUNG_SIZE, len(names)]
        for name in names:
            policy = store.settings.policy(name)
            self._rest += [name, store.channel(name), policy.history_size, policy.history_ttl]
        for name, message in items:
            self._rest += [numbers[name], message.data, message.exclude, message.idempotency_key]
        self._tried_at = time.monotonic()
        self._maybe_done = False

    def call(self) -> Call:
        """Return the next try."""
        elapsed = f"{time.monotonic() - self._tried_at:.3f}" if self._maybe_done else ""
        return Call("append", self._keys, [LINEAGE, self._now(), *self._id, elapsed, *self._rest])

    def failed(self, error: StoreError) -> None:
        """A try failed: return if there is to be another one.

        Raises:
            BroadcastError: nothing was stored.
            BroadcastUncertain: perhaps it was.
        """
        self._maybe_done = self._maybe_done or (isinstance(error, RedisUnavailable) and error.sent)
        if not self._maybe_done:
            raise BroadcastError(f"Nothing was broadcast: {error}") from error
        if time.monotonic() - self._tried_at > RETRY_TIME:
            raise self._uncertain(str(error)) from error

    def positions(self, answer: Any) -> list[StreamPosition]:
        """Return what the script answered."""
        if answer == b"uncertain":
            raise self._uncertain("Its first answer was lost, and what came since has been trimmed.")
        return [StreamPosition(epoch.decode(), int(offset)) for epoch, offset in answer]

    @staticmethod
    def _uncertain(why: str) -> BroadcastUncertain:
        return BroadcastUncertain(
            f"Whether the broadcast was stored is unknown: {why} Repeating it with the same idempotency_key is safe."
        )


class RedisStreamStore(StreamStore):
    """Keeps streams in the Redis of `settings.redis_url`.

    Times are those of Redis's own clock, so that servers need not agree. An epoch is bound to the lineage of the data
    (redis/lineage.py). After a restart or a failover, new epochs begin, whatever data are there, and subscribers are
    told.

    Args:
        settings: `redis_url`, `redis_options`, `key_prefix`, and the sizes and times of history.
        clock: for tests; None: Redis's own.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock or time.time)
        self._clock = clock
        self.client = client_for(settings)
        self._pattern = re.sub(r"([*?\[\]\\^])", r"\\\1", settings.key_prefix) + ":{*}:meta"

    # -- what scripts are given ---------------------------------------------------------------------------------------

    def keys(self, stream: str) -> tuple[str, str, str]:
        """Return the names of a stream's keys: meta, log, idempotency keys."""
        tag = stream_tag(self.settings.key_prefix, stream)
        return f"{tag}:meta", f"{tag}:log", f"{tag}:keys"

    def channel(self, stream: str) -> str:
        """Return the pub/sub channel of a stream."""
        return stream_channel(self.settings.key_prefix, stream)

    def now(self) -> str:
        """Return a test's time; empty: the script asks Redis."""
        return "" if self._clock is None else f"{self._clock():.6f}"

    # -- appending ----------------------------------------------------------------------------------------------------

    def append(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, all or none, in this order, and announce them; return their positions."""
        if not items:
            return []
        append = _Append(self, items)
        while True:
            try:
                return append.positions(self.client.run(append.call())[0])
            except (RedisUnavailable, RedisRefused) as error:
                append.failed(error)
            time.sleep(RETRY_DELAY)

    async def aappend(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Async twin of `append`."""
        if not items:
            return []
        append = _Append(self, items)
        while True:
            try:
                return append.positions((await self.client.arun(append.call()))[0])
            except (RedisUnavailable, RedisRefused) as error:
                append.failed(error)
            await asyncio.sleep(RETRY_DELAY)

    def publish_transient(self, stream: str, message: Message) -> None:
        """Announce a message that is not kept, to every process."""
        with _broadcast_errors():
            self.client.run(self._transient(stream, message))

    async def apublish_transient(self, stream: str, message: Message) -> None:
        """Async twin of `publish_transient`."""
        with _broadcast_errors():
            await self.client.arun(self._transient(stream, message))

    def whisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper, to every process."""
        self.publish_transient(stream, message)

    async def awhisper(self, stream: str, message: Message) -> None:
        """Async twin of `whisper`."""
        await self.apublish_transient(stream, message)

    def _transient(self, stream: str, message: Message) -> Call:
        return Call("transient", [], [LINEAGE, self.channel(stream), f"t{message.exclude}\n{message.data}"])

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(
        self, stream: str, *, after: int, limit: int, known: StreamPosition | None = None, following: bool = False
    ) -> StreamPage:
        """Return up to `limit` kept entries with greater offsets than `after`, and the stream's state."""
        return _page(self.client.run(self._read(stream, after, limit, following), again=True)[0])

    async def aread(
        self, stream: str, *, after: int, limit: int, known: StreamPosition | None = None, following: bool = False
    ) -> StreamPage:
        """Async twin of `read`."""
        return _page((await self.client.arun(self._read(stream, after, limit, following), again=True))[0])

    def _read(self, stream: str, after: int, limit: int, following: bool) -> Call:
        policy = self.settings.policy(stream)
        args: list[Argument] = [LINEAGE, self.now(), policy.history_size, policy.history_ttl]
        return Call("read", self.keys(stream)[:2], [*args, after, max(limit, 0), int(following)])

    async def aposition(self, stream: str) -> StreamPosition:
        """Async twin of `position`."""
        page = await self.aread(stream, after=0, limit=0)
        return StreamPosition(page.epoch, page.tail)

    def offset_since(self, stream: str, since: float) -> int | None:
        """Return the offset after which lies everything appended at or after `since`; None if some of it is gone."""
        answer = self.client.run(self._since(stream, since), again=True)[0]
        return None if answer is None else int(answer)

    async def aoffset_since(self, stream: str, since: float) -> int | None:
        """Async twin of `offset_since`."""
        answer = (await self.client.arun(self._since(stream, since), again=True))[0]
        return None if answer is None else int(answer)

    def _since(self, stream: str, since: float) -> Call:
        policy = self.settings.policy(stream)
        args: list[Argument] = [LINEAGE, self.now(), policy.history_size, policy.history_ttl, f"{since:.6f}"]
        return Call("since", self.keys(stream)[:2], args)

    async def tails(self, streams: Sequence[str]) -> dict[str, StreamPosition]:
        """Return the positions of streams, in one round trip per batch."""
        found: dict[str, StreamPosition] = {}
        for start in range(0, len(streams), BATCH):
            batch = streams[start : start + BATCH]
            call = Call("tails", [self.keys(stream)[0] for stream in batch], [LINEAGE])
            (answers,) = await self.client.arun(call, again=True)
            for stream, (epoch, tail) in zip(batch, answers, strict=True):
                found[stream] = StreamPosition(epoch.decode(), int(tail))
        return found

    # -- deleting -----------------------------------------------------------------------------------------------------

    def forget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch."""
        self.client.run(self._forget(stream, epoch), again=True)

    async def aforget(self, stream: str, *, epoch: str = "") -> None:
        """Async twin of `forget`."""
        await self.client.arun(self._forget(stream, epoch), again=True)

    def _forget(self, stream: str, epoch: str) -> Call:
        return Call("forget", self.keys(stream), [self.channel(stream), epoch])

    def forget_all(self) -> int:
        """End the epochs of all streams, and the incarnations of all presence; return how many streams there were.

        The data get a new lineage, which other processes find within seconds. Call this after a backup was restored.

        Raises:
            StoreError: Redis could not be reached.
        """
        self.client.run(Call("HSET", [self.client.lineage.key], ["token", secrets.token_hex(16)]), again=True)
        return len({name for names in self._names() for name in names})

    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` entries that are past their stream's size or TTL; return how many went.

        Needed little: appends trim, and what nothing is appended to expires as a whole.
        """
        count = 0
        for names in self._names():
            count += sum(self.client.run(*map(self._prune, names)))
            if count >= limit:
                break
        return count

    def _names(self) -> Iterator[list[str]]:
        """Yield the names of all streams, some at a time; a name may come twice."""
        cursor = None
        while cursor != 0:
            scan = Call("SCAN", [], [cursor or 0, "MATCH", self._pattern, "COUNT", BATCH])
            ((cursor, metas),) = self.client.run(scan, again=True)
            cursor = int(cursor)
            calls = [Call("HGET", [meta.decode()], ["n"]) for meta in metas]
            names = [name.decode() for name in self.client.run(*calls, again=True) if name] if calls else []
            if names:
                yield names

    def _prune(self, stream: str) -> Call:
        policy = self.settings.policy(stream)
        args: list[Argument] = [self.now(), policy.history_size, policy.history_ttl]
        return Call("prune", self.keys(stream), [*args, int(IDLE_STREAM_TTL), YOUNG_TIME, YOUNG_SIZE])

    def time(self) -> float:
        """Return the present time by Redis's clock, in seconds since 1970."""
        return self.client.time() if self._clock is None else self._clock()

    async def atime(self) -> float:
        """Async twin of `time`."""
        return await self.client.atime() if self._clock is None else self._clock()

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clock of Redis."""
        return {"Redis": self.time}

    def problems(self) -> list[str]:
        """Say what about Redis breaks promises."""
        return find_problems(self.client)

    def close(self) -> None:
        """Close the connections of sync code."""
        self.client.close()

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self.client.aclose()

    # -- announcing ---------------------------------------------------------------------------------------------------

    def push(self, events: Sequence[Published]) -> None:
        """Keep and announce messages that another store has numbered, in one round trip.

        Args:
            events: in offset order for each stream.

        Raises:
            StoreError: some were perhaps not announced.
        """
        streams: dict[tuple[str, str], list[Published]] = {}
        for event in events:
            streams.setdefault((event.stream, event.epoch), []).append(event)
        calls = []
        for (stream, epoch), group in streams.items():
            policy = self.settings.policy(stream)
            head: list[Argument] = [
                self.channel(stream),
                policy.history_size,
                policy.history_ttl,
                int(IDLE_STREAM_TTL),
                YOUNG_TIME,
                YOUNG_SIZE,
                epoch,
            ]
            rest: list[Argument] = [value for event in group for value in (event.offset, event.data, event.exclude)]
            calls.append(Call("push", self.keys(stream)[:2], [*head, *rest]))
        self.client.run(*calls, again=True)

    def listen(self, deliver: Callable[[StreamEvent], None]) -> RedisStreamListener:
        """Return a listener that hands events to `deliver`, on the event loop that calls this."""
        return RedisStreamListener(self, pubsub_of(self.client), deliver)

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.to_thread(call)


@contextmanager
def _broadcast_errors() -> Iterator[None]:
    """Turn the errors of an announcement into `BroadcastError`."""
    try:
        yield
    except RedisUnavailable as error:
        if error.sent:
            raise BroadcastUncertain(f"Whether the message was sent is unknown: {error}") from error
        raise BroadcastError(f"Nothing was broadcast: {error}") from error
    except RedisRefused as error:
        raise BroadcastError(f"Nothing was broadcast: {error}") from error


def _page(answer: Any) -> StreamPage:
    epoch, tail, low, entries = answer
    return StreamPage(
        epoch.decode(),
        int(tail),
        int(low),
        tuple(Entry(int(id_.partition(b"-")[0]), fields[1].decode(), fields[5].decode()) for id_, fields in entries),
    )
