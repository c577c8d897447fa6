"""Spreads bursts of work over many iterations of the event loop, so that other tasks run in between.

After a restart, thousands of clients may reconnect within a second. If all handshakes, restores and history reads ran
in the same iteration, clients that are already connected would receive nothing during this time.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

#: How many handshakes, restores or history reads a pacer allows in one iteration of the event loop.
PER_ITERATION: Final = 20


class Pacer:
    """Lets a limited number of callers proceed in each iteration of the event loop, and queues the others in order.

    Args:
        limit: how many callers may proceed in one iteration.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: How many callers have proceeded in this iteration.
        self._used = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        #: A function for each queued caller, which wakes the caller. It returns False if the caller was cancelled.
        self._waiting: deque[Callable[[], bool]] = deque()

    async def wait(self) -> None:
        """Wait until the caller may proceed. Below the limit, the caller may proceed immediately."""
        if self._begin():
            return
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> bool:
            if admitted.done():
                return False
            admitted.set_result(None)
            return True

        self._waiting.append(wake)
        await admitted

    def run(self, call: Callable[[], object]) -> None:
        """Call a function now, or in a later iteration of the event loop if the limit is reached."""
        if self._begin():
            call()
            return
        loop = asyncio.get_running_loop()

        def wake() -> bool:
            loop.call_soon(call)
            return True

        self._waiting.append(wake)

    def _begin(self) -> bool:
        """Count the caller in this iteration, and return True. If the limit is reached, only return False."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # The former loop may have been closed before it called `_next_iteration`, which resets the attributes.
            self._loop, self._used = loop, 0
            self._waiting.clear()
        if self._used == 0:
            loop.call_soon(self._next_iteration, loop)
        if self._used >= self._limit:
            return False
        self._used += 1
        return True

    def _next_iteration(self, loop: asyncio.AbstractEventLoop) -> None:
        self._used = 0
        while self._waiting and self._used < self._limit:
            self._used += self._waiting.popleft()()
        if self._used:
            # The woken callers run before the next call of this method, because they were scheduled first.
            loop.call_soon(self._next_iteration, loop)
