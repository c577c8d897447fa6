"""Closes connections of redis-py's pools that have been idle for a long time.

Both the sync and the async pool are stacks: the connection that was released last is used next. So after a burst of
calls, the connections at the bottom stay idle. A pool keeps a closed connection, and opens it again when needed.
"""

import time
from collections.abc import Iterable, Iterator
from queue import LifoQueue
from typing import Any, Final

#: How long, in seconds, a connection may be idle. After that, it is closed as soon as another connection is released.
MAX_IDLE_TIME: Final = 60.0


def _idle_too_long(stack: Iterable[Any], now: float) -> Iterator[Any]:
    """Yield the connections that have been idle for too long. They are at the bottom of the stack, the oldest first."""
    for connection in stack:
        # A closed connection has no `idle_since`, and stays at the bottom of the stack.
        since = getattr(connection, "idle_since", None)
        if since is None:
            continue
        if now - since <= MAX_IDLE_TIME:
            break
        yield connection


class IdleQueue(LifoQueue[Any]):
    """The idle connections of a pool for sync code. `None` stands for a connection that has not been made yet."""

    def _put(self, item: Any) -> None:
        # The caller holds the queue's lock, so no thread can take a connection out of the queue during this method.
        super()._put(item)
        now = time.monotonic()
        if item is not None:
            item.idle_since = now
        for connection in _idle_too_long(self.queue, now):
            connection.disconnect()
            del connection.idle_since


async def release(pool: Any, connection: Any) -> None:
    """Put a connection back into a pool of `redis.asyncio`. Close the pool's connections that were idle too long."""
    now = time.monotonic()
    connection.idle_since = now
    await pool.release(connection)
    while idle := next(_idle_too_long(pool._available_connections, now), None):
        del idle.idle_since
        await idle.disconnect(nowait=True)
