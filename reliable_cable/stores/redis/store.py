"""The base class of all stores in Redis."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from copy import copy
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from reliable_cable.conf import CableSettings
from reliable_cable.stores.base import Store

from .client import BaseClient, Call
from .clients import client_for
from .exchange import finish
from .keys import SHARDED

P = ParamSpec("P")
T = TypeVar("T")


def sync_twin(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Return the sync version of an async method of a Redis store. The method must await only calls of the client.

    The sync version runs the method with a client that blocks. The method therefore never suspends, and needs no event
    loop. If a subclass overrides the method, the sync version runs the method of the subclass.
    """

    @wraps(method)
    def twin(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = finish(getattr(self.blocking, method.__name__)(*args, **kwargs))
        return result

    return twin


class RedisStore(Store):
    """Base class of the stores that keep their data in the Redis server at `settings.redis_url`.

    Times come from Redis's clock.

    Args:
        settings: the settings; `redis_url`, `redis_options` and `key_prefix` are used.
        clock: a clock for tests, which returns seconds since 1970. It replaces Redis's clock.
    """

    is_remote = True

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock or time.time)
        self._clock = clock
        self.client: BaseClient = client_for(settings)

    @property
    def place(self) -> str:
        """Where the data are stored, as a string for error messages."""
        return self.client.place

    @cached_property
    def blocking(self) -> Self:
        """A copy of this store with a blocking Redis client, for sync code."""
        store = copy(self)
        store.client = self.client.blocking()
        return store

    def channel(self, stream: str) -> str:
        """Return the pub/sub channel of a stream."""
        return self.client.names.channel(stream)

    def channel_argument(self, stream: str) -> str:
        """Return the pub/sub channel of a stream, as an argument of a script that publishes."""
        return f"{SHARDED if self.client.names.cluster else ''}{self.channel(stream)}"

    def script_time(self) -> str:
        """Return the time argument for Lua scripts: `""` to use Redis's clock, or the time of a test's clock."""
        return "" if self._clock is None else f"{self._clock():.6f}"

    async def atime(self) -> float:
        """Return the current time by Redis's clock, in seconds since 1970.

        In a cluster, this is the time of the primary whose clock is the furthest behind.
        """
        if self._clock is not None:
            return self._clock()
        return min([await _read_clock(server) for server in await self.client.aservers()])

    time = sync_twin(atime)

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clocks of Redis. In a cluster, each node has its own clock."""
        if not self.client.names.cluster:
            return {"Redis": lambda: finish(RedisStore.atime(self.blocking))}
        return _NodeClocks(self.client)

    def close(self) -> None:
        """Close the connections of sync code."""
        self.client.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self.client.aclose()

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.to_thread(call)


class _NodeClocks(Mapping[str, Callable[[], float]]):
    """The clocks of the nodes of a cluster, by their addresses. The nodes are only looked up when they are needed.

    Args:
        client: the client of the cluster.
    """

    def __init__(self, client: BaseClient) -> None:
        self._client = client

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, name: str) -> Callable[[], float]:
        for server in self._client.servers():
            if server.place == name:
                return lambda: finish(_read_clock(server))
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter([server.place for server in self._client.servers()])

    def __len__(self) -> int:
        return len(self._client.servers())


async def _read_clock(server: BaseClient) -> float:
    ((seconds, microseconds),) = await server.arun(Call("TIME"), idempotent=True)
    return int(seconds) + int(microseconds) / 1e6
