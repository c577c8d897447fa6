"""Work of which much may come at once is done a little in each turn of the event loop, so that others have theirs."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Lets no more than so many go on in one turn of the event loop; the others wait, in order.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Wait for one's turn; returns at once where few come."""
        loop = asyncio.get_running_loop()
        if self._taken == 0:
            loop.call_soon(self._next, loop)
        if self._taken < self._size:
            self._taken += 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._taken = 0
        while self._waiting and self._taken < self._size:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._taken += 1
        if self._taken:
            # What was let go on runs before this.
            loop.call_soon(self._next, loop)
