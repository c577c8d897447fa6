"""Closes connections of redis-py's pools that have been idle for a long time.

Both the sync and the async pool are stacks: the connection that was released last is used next. So after a burst of
calls, the connections at the bottom stay idle. A pool keeps a closed connection, and opens it again when needed.
"""

import time
from queue import LifoQueue
from typing import Any, Final

#: How long, in seconds, a connection may be idle. After that, it is closed as soon as another connection is released.
MAX_IDLE_TIME: Final = 60.0


def _is_old(connection: Any, now: float) -> bool:
    return now - getattr(connection, "idle_since", now) > MAX_IDLE_TIME


class IdleQueue(LifoQueue[Any]):
    """The idle connections of a pool for sync code. `None` stands for a connection that has not been made yet."""

    def _put(self, item: Any) -> None:
        # The caller holds the queue's lock, so no thread can take a connection out of the queue during this method.
        super()._put(item)
        now = time.monotonic()
        if item is not None:
            item.idle_since = now
        for connection in filter(None, self.queue):
            if _is_old(connection, now):
                connection.disconnect()
                del connection.idle_since


async def release(pool: Any, connection: Any) -> None:
    """Put a connection back into a pool of `redis.asyncio`. Close the pool's connections that were idle too long."""
    now = time.monotonic()
    connection.idle_since = now
    await pool.release(connection)
    while idle := next((each for each in pool._available_connections if _is_old(each, now)), None):
        del idle.idle_since
        await idle.disconnect(nowait=True)
