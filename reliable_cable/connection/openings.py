"""Handles several `subscribe` commands of one connection together, so that their streams are opened together.

Streams that are opened together share the queries to the stores. Therefore, while the streams of a `subscribe` are
being opened, the handlers of further `subscribe` commands run, one after another. All other commands wait. The answers
are sent in the order of the commands.
"""

import asyncio
from collections.abc import Coroutine
from itertools import takewhile
from typing import Any, Final

from reliable_cable.concurrency.tasks import BackgroundTasks

#: The maximum number of `subscribe` commands of one connection that are handled together.
MAX_OPENINGS: Final = 16


class Openings:
    """The `subscribe` commands of one connection that are handled in separate tasks.

    Args:
        tasks: the background tasks of the event loop.
    """

    __slots__ = ("_spawn", "handlers", "running")

    def __init__(self, tasks: BackgroundTasks) -> None:
        self._spawn = tasks.spawn
        #: The lock that lets one handler run at a time, in the order of the commands.
        self.handlers = asyncio.Lock()
        #: The tasks that were started since the last `wait`, by identifier. Some of them may have ended.
        self.running: dict[str, asyncio.Task[None]] = {}

    def add(self, identifier: str, subscribe: Coroutine[Any, Any, None]) -> None:
        """Start a task that handles a `subscribe`."""
        self.running[identifier] = self._spawn(subscribe)

    @property
    def full(self) -> bool:
        """Whether the caller must `wait` before it starts another task."""
        return len(self.running) >= MAX_OPENINGS

    async def wait_for_earlier(self, identifier: str) -> None:
        """Wait until the commands before the command with this identifier have been answered."""
        earlier = [task for _, task in takewhile(lambda item: item[0] != identifier, self.running.items())]
        if earlier:
            await asyncio.wait(earlier)

    async def wait(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the timeout cancels nothing
        """Wait until all tasks have ended, for at most `timeout` seconds."""
        if self.running:
            await asyncio.wait(self.running.values(), timeout=timeout)
            self.running = {identifier: task for identifier, task in self.running.items() if not task.done()}
