"""The methods that all stores in Redis have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from reliable_cable.conf import CableSettings
from reliable_cable.stores.base import Store

from .client import client_for
from .keys import stream_channel

T = TypeVar("T")


class RedisStore(Store):
    """Connects a store to the Redis of `settings.redis_url`, and gives it Redis's clock.

    Args:
        settings: uses `redis_url`, `redis_options` and `key_prefix`.
        clock: replaces Redis's clock in tests, in seconds since 1970.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock or time.time)
        self._clock = clock
        self.client = client_for(settings)

    def channel(self, stream: str) -> str:
        """Return the pub/sub channel of a stream."""
        return stream_channel(self.settings.key_prefix, stream)

    def script_time(self) -> str:
        """Return the time argument of a Lua script: the time of a test's clock, or `""` to make it ask Redis."""
        return "" if self._clock is None else f"{self._clock():.6f}"

    def time(self) -> float:
        """Return the present time by Redis's clock, in seconds since 1970."""
        return self.client.time() if self._clock is None else self._clock()

    async def atime(self) -> float:
        """Async twin of `time`."""
        return await self.client.atime() if self._clock is None else self._clock()

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clock of Redis."""
        return {"Redis": self.time}

    def close(self) -> None:
        """Close the connections of sync code."""
        self.client.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop."""
        await self.client.aclose()

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.to_thread(call)
