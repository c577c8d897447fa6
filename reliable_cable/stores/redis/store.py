"""The base class of all stores in Redis."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from copy import copy
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from reliable_cable.conf import CableSettings
from reliable_cable.stores.base import Store

from .client import BlockingClient, Call, RedisClient, client_for
from .exchange import finish
from .keys import stream_channel

P = ParamSpec("P")
T = TypeVar("T")


def sync_twin(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Return the sync twin of an async method of a Redis store. The method must await only calls of the client.

    The twin runs the method with a client that blocks. The method therefore never suspends, and needs no event loop. If
    a subclass overrides the method, the twin runs the method of the subclass.
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
        self.client: RedisClient = client_for(settings)

    @property
    def place(self) -> str:
        """Where the data are stored, as a string for error messages."""
        return self.client.place

    @cached_property
    def blocking(self) -> Self:
        """A copy of this store with a blocking Redis client, for sync code."""
        store = copy(self)
        store.client = BlockingClient(self.client)
        return store

    def channel(self, stream: str) -> str:
        """Return the pub/sub channel of a stream."""
        return stream_channel(self.settings.key_prefix, self.client.database, stream)

    def script_time(self) -> str:
        """Return the time argument for Lua scripts: `""` to use Redis's clock, or the time of a test's clock."""
        return "" if self._clock is None else f"{self._clock():.6f}"

    async def atime(self) -> float:
        """Return the current time by Redis's clock, in seconds since 1970."""
        if self._clock is not None:
            return self._clock()
        ((seconds, microseconds),) = await self.client.arun(Call("TIME"), idempotent=True)
        return int(seconds) + int(microseconds) / 1e6

    time = sync_twin(atime)

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clock of Redis."""
        return {"Redis": lambda: finish(RedisStore.atime(self.blocking))}

    def close(self) -> None:
        """Close the connections of sync code."""
        self.client.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self.client.aclose()

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.to_thread(call)
