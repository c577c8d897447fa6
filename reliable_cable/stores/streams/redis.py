"""The stream store in Redis. The state of each stream is in a hash, and its entries are in a Redis stream.

Lua scripts read and change the data of a stream in one round trip.
"""

import base64
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.redis.client import LINEAGE, NEW_TOKEN, Argument, Call, RedisRefused, RedisUnavailable
from reliable_cable.stores.redis.doctor import describe_cluster, find_problems
from reliable_cable.stores.redis.scanning import scan_keys
from reliable_cable.stores.redis.store import RedisStore, sync_twin

from .base import YOUNG_SIZE, YOUNG_TIME, Message, Published, StreamEvent, StreamStore
from .redis_listener import WHISPER_SUFFIX, RedisStreamListener
from .sharding import require_one_shard

#: How long, in seconds, to retry an append that got no response.
RETRY_TIME: Final = 8.0
#: The delay, in seconds, before each retry of an append.
RETRY_DELAY: Final = 0.05

#: The maximum number of Redis keys that one call reads.
KEYS_PER_CALL: Final = 500


class RedisStreamStore(RedisStore, StreamStore):
    """Stores streams in the Redis server at `settings.redis_url`.

    Times come from Redis's clock, because the clocks of hosts differ. After a restart or failover of Redis, which may
    have lost messages, the data get a new lineage (see redis/lineage.py), and the streams get new epochs.

    Args:
        settings: the settings; `redis_url`, `redis_options`, `key_prefix` and the history settings of the streams are
            used.
        clock: a clock for tests, which returns seconds since 1970. It replaces Redis's clock.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock)
        prefix = re.sub(r"([*?\[\]\\^])", r"\\\1", settings.key_prefix)
        self._meta_pattern = f"{prefix}:{{*}}:{'*:' if settings.uses_cluster else ''}meta"

    # -- keys ---------------------------------------------------------------------------------------------------------

    def keys(self, stream: str) -> tuple[str, str, str]:
        """Return three Redis keys of a stream, under which its state, entries and idempotency keys are stored."""
        tag = self.client.names.stream(stream)
        return f"{tag}:meta", f"{tag}:log", f"{tag}:keys"

    # -- appending ----------------------------------------------------------------------------------------------------

    async def aappend(self, items: Sequence[tuple[str, Message]]) -> list[StreamPosition]:
        """Store messages, announce them, and return their positions. Either all messages are stored, or none."""
        if not items:
            return []
        attempt = self._append_attempts(items)
        started_at = time.monotonic()
        maybe_done = False
        while True:
            elapsed = f"{time.monotonic() - started_at:.3f}" if maybe_done else ""
            try:
                (reply,) = await self.client.arun(attempt(elapsed))
            except (RedisUnavailable, RedisRefused) as error:
                maybe_done = maybe_done or error.sent
                if not maybe_done:
                    raise BroadcastError(f"Nothing was broadcast: {error}") from error
                if time.monotonic() - started_at > RETRY_TIME:
                    raise _uncertain(str(error)) from error
            else:
                if reply == b"uncertain":
                    why = "Redis did not respond to the first attempt, and the entries stored since then were trimmed."
                    raise _uncertain(why)
                words = reply.decode().split(" ")
                return [StreamPosition(*each) for each in zip(words[::2], map(int, words[1::2]), strict=True)]
            await self.client.sleep(RETRY_DELAY)

    append = sync_twin(aappend)

    def _append_attempts(self, items: Sequence[tuple[str, Message]]) -> Callable[[str], Call]:
        """Return a function that builds the Redis call for an attempt to append messages.

        The argument of the function is the time since the first attempt, in seconds, as a string; `""` if no earlier
        attempt can have stored the messages.
        """
        names = list(dict.fromkeys(name for name, _ in items))
        self.require_history(names)
        require_one_shard(self.shard, names)
        numbers = {name: number for number, name in enumerate(names, 1)}
        keys = [key for name in names for key in self.keys(name)]
        append_id = base64.b64encode(secrets.token_bytes(9)).decode()
        rest: list[Argument] = [*_common_limits(), len(names)]
        for name in names:
            rest += [name, self.channel_argument(name), *self._retention(name)]
        for name, message in items:
            rest += [numbers[name], message.data, message.exclude, message.idempotency_key]
        return lambda elapsed: Call("append", keys, [LINEAGE, NEW_TOKEN, self.script_time(), append_id, elapsed, *rest])

    async def apublish_transient(self, stream: str, message: Message) -> None:
        """Announce a message to all processes, without storing it."""
        await self._publish(stream, message.exclude, message.data)

    async def awhisper(self, stream: str, message: Message) -> None:
        """Announce a client's whisper to all processes."""
        await self._publish(stream, message.exclude + WHISPER_SUFFIX, message.data)

    async def _publish(self, stream: str, head: str, data: str) -> None:
        names = self.client.names
        args: list[Argument] = [LINEAGE, self.channel_argument(stream), f"t{head}\n{data}"]
        call = Call("transient", [], args, beside=names.lineage(names.partition(stream)))
        try:
            await self.client.arun(call)
        except (RedisUnavailable, RedisRefused) as error:
            if error.sent:
                raise BroadcastUncertain(f"The message may or may not have been sent: {error}") from error
            raise BroadcastError(f"Nothing was broadcast: {error}") from error

    publish_transient = sync_twin(apublish_transient)

    whisper = sync_twin(awhisper)

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
        """Return up to `limit` stored entries whose offsets are greater than `after`, and the stream's state."""
        bounds = (after, max(limit, 0), int(following), "" if max_size is None else max_size)
        call = Call("read", self.keys(stream)[:2], [LINEAGE, self.script_time(), *self._limits(stream), *bounds])
        ((epoch, tail, low, items, lineage),) = await self.client.arun(call, idempotent=True)
        entries = (Entry(int(id_.partition(b"-")[0]), item[1].decode(), item[5].decode()) for id_, item in items)
        return StreamPage(epoch.decode(), int(tail), int(low), tuple(entries), lineage.decode())

    read = sync_twin(aread)

    async def alineages(self, streams: Collection[str]) -> list[str]:
        """Return the lineage of each stream's data in Redis, as this process last saw it.

        This seldom takes a round trip.
        """
        partitions = [self.client.names.partition(stream) for stream in streams]
        lineages = await self.client.alineages(dict.fromkeys(partitions))
        return [lineages[partition] for partition in partitions]

    async def aposition(self, stream: str) -> StreamPosition:
        """Return the position of the stream's newest message; `("", 0)` if the stream does not exist."""
        page = await self.aread(stream, after=0, limit=0)
        return StreamPosition(page.epoch, page.tail)

    position = sync_twin(aposition)

    async def apositions(self, streams: Collection[str]) -> list[StreamPosition]:
        """Return the positions of several streams. Each round trip reads up to `KEYS_PER_CALL` positions."""
        tails = await self.tails(list(streams))
        return [tails[stream] for stream in streams]

    async def aoffset_since(self, stream: str, since: float) -> int | None:
        """Return the offset of the last message before a time; None if some of the messages since then are gone."""
        deleted_after = self.deleted_after(stream)
        args: list[Argument] = [LINEAGE, self.script_time(), *self._limits(stream), f"{since:.6f}"]
        args.append("" if deleted_after is None else deleted_after)
        (offset,) = await self.client.arun(Call("since", self.keys(stream)[:2], args), idempotent=True)
        return None if offset is None else int(offset)

    offset_since = sync_twin(aoffset_since)

    def _limits(self, stream: str) -> tuple[int, float]:
        policy = self.settings.policy(stream)
        return policy.history_size, policy.history_ttl

    def _retention(self, stream: str) -> tuple[int, float, int]:
        return (*self._limits(stream), int(self.settings.policy(stream).history_meta_ttl))

    async def tails(self, streams: Sequence[str]) -> dict[str, StreamPosition]:
        """Return the positions of streams, by name. Each round trip reads up to `KEYS_PER_CALL` positions."""
        positions: dict[str, StreamPosition] = {}
        batches = []
        for part in self._parts(streams).values():
            batches += [part[start : start + KEYS_PER_CALL] for start in range(0, len(part), KEYS_PER_CALL)]
        calls = [Call("tails", [self.keys(stream)[0] for stream in batch], [LINEAGE]) for batch in batches]
        # On a single server, each call is a round trip, so that no reply is large.
        size = KEYS_PER_CALL if self.client.names.cluster else 1
        for batch, tails in zip(batches, await self.client.arun_all(calls, size=size), strict=True):
            for stream, (epoch, tail) in zip(batch, tails, strict=True):
                positions[stream] = StreamPosition(epoch.decode(), int(tail))
        return positions

    def _parts(self, streams: Iterable[str]) -> dict[str, list[str]]:
        """Return the streams of each partition. A script can only use the keys of one partition."""
        parts: dict[str, list[str]] = {}
        for stream in streams:
            parts.setdefault(self.client.names.partition(stream), []).append(stream)
        return parts

    def shard(self, stream: str) -> str:
        """Return the partition of a stream in a Redis Cluster, or `""` on a single server."""
        return self.client.names.partition(stream) if self.client.names.cluster else ""

    # -- deleting -----------------------------------------------------------------------------------------------------

    async def aforget(self, stream: str, *, epoch: str = "") -> None:
        """Delete a stream's history and end its epoch."""
        idle = int(self.settings.policy(stream).history_meta_ttl)
        args: list[Argument] = [LINEAGE, NEW_TOKEN, self.script_time(), self.channel_argument(stream)]
        args += [epoch, idle]
        await self.client.arun(Call("forget", self.keys(stream), args), idempotent=True)

    forget = sync_twin(aforget)

    def forget_all(self) -> int:
        """End the epochs of all streams, and the incarnations of all presence data. Return the number of streams.

        The data in Redis are marked as a new data set: they get a new lineage. Other processes notice this within
        seconds. Call this method after a backup was restored.

        Raises:
            StoreError: Redis could not be reached.
        """
        lineage = ["token", secrets.token_hex(16), "began", f"{self.time():.6f}"]
        names = self.client.names
        records = [names.lineage(partition) for partition in names.partitions()]
        self.client.run(*(Call("HSET", [record], lineage) for record in records), idempotent=True)
        return len({name for names in self._names() for name in names})

    def prune(self, *, limit: int = 1000) -> int:
        """Delete up to about `limit` entries beyond their stream's history size or TTL. Return the exact number.

        This is seldom needed, because each append trims its streams, and Redis deletes the entries of idle streams.
        """
        count = 0
        for names in self._names():
            count += sum(self.client.run(*map(self._prune, names)))
            if count >= limit:
                break
        return count

    def _names(self) -> Iterator[list[str]]:
        """Yield the names of all streams, in several lists. A name may occur twice."""
        for metas in scan_keys(self.client, self._meta_pattern, KEYS_PER_CALL):
            calls = [Call("HGET", [meta], ["n"]) for meta in metas]
            names = [name.decode() for name in self.client.run(*calls, idempotent=True) if name] if calls else []
            if names:
                yield names

    def _prune(self, stream: str) -> Call:
        return Call("prune", self.keys(stream), [self.script_time(), *self._retention(stream), *_common_limits()])

    def problems(self) -> list[str]:
        """Return the problems of the Redis server that break guarantees of the store."""
        return find_problems(self.client)

    def notes(self) -> list[str]:
        """Return sentences about a Redis Cluster (see `describe_cluster`); none for a single server."""
        return describe_cluster(self.client) if self.client.names.cluster else []

    # -- announcing ---------------------------------------------------------------------------------------------------

    def push(self, events: Sequence[Published]) -> None:
        """Store and announce messages that another store has numbered, in one round trip.

        Args:
            events: the messages. The messages of each stream must be in the order of their offsets.

        Raises:
            StoreError: some messages may not have been announced.
        """
        streams: dict[tuple[str, str], list[Published]] = {}
        for event in events:
            streams.setdefault((event.stream, event.epoch), []).append(event)
        calls = []
        for (stream, epoch), group in streams.items():
            args: list[Argument] = [
                self.channel_argument(stream),
                *self._retention(stream),
                *_common_limits(),
                epoch,
            ]
            for event in group:
                args += [event.entry.offset, event.entry.data, event.entry.exclude]
            calls.append(Call("push", self.keys(stream)[:2], args))
        self.client.run(*calls, idempotent=True)

    def listen(self, deliver: Callable[[StreamEvent], None]) -> RedisStreamListener:
        """Return a listener that calls `deliver` with events on the running event loop."""
        return RedisStreamListener(self.client, self.tails, deliver)


def _uncertain(why: str) -> BroadcastUncertain:
    return BroadcastUncertain(
        f"The broadcast may or may not have been stored: {why} Repeating it with the same idempotency_key is safe."
    )


def _common_limits() -> tuple[float, int]:
    """Return the maximum age and size of young entries, as arguments of a script. All streams have the same limits."""
    return YOUNG_TIME, YOUNG_SIZE
