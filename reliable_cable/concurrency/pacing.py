"""Work of which much may come at once is done a little in each turn of the event loop, so that others have theirs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

#: Connections that begin, are restored, or are sent their history in one turn of the event loop.
TURN: Final = 20


class Turns:
    """Lets no more than so many go on in one turn of the event loop; the others wait, in order.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[Callable[[], bool]] = deque()

    async def take(self) -> None:
        """Wait for one's turn; returns at once where few come."""
        if self._begin():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def go() -> bool:
            if turn.done():
                return False
            turn.set_result(None)
            return True

        self._waiting.append(go)
        await turn

    def run(self, call: Callable[[], object]) -> None:
        """Call something when its turn has come: at once where few come, else from the event loop."""
        if self._begin():
            call()
            return
        loop = asyncio.get_running_loop()

        def go() -> bool:
            loop.call_soon(call)
            return True

        self._waiting.append(go)

    def _begin(self) -> bool:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # One that ended in the middle of a turn has none after it.
            self._loop, self._taken = loop, 0
            self._waiting.clear()
        if self._taken == 0:
            loop.call_soon(self._next, loop)
        if self._taken >= self._size:
            return False
        self._taken += 1
        return True

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._taken = 0
        while self._waiting and self._taken < self._size:
            # One that gave up takes nobody's place.
            self._taken += self._waiting.popleft()()
        if self._taken:
            # What was let go on runs before this.
            loop.call_soon(self._next, loop)
