"""Background tasks of an event loop."""

import asyncio
import contextlib
from collections.abc import Collection, Coroutine
from contextvars import Context
from typing import Any


def mark_retrieved(future: asyncio.Future[Any]) -> None:
    """Mark the error of a shared future as retrieved, so that asyncio does not log it if all callers were cancelled."""
    if not future.cancelled():
        future.exception()


async def cancel(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks, and wait until they have ended."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


async def wait_and_clear(event: asyncio.Event, timeout: float | None) -> None:  # noqa: ASYNC109 - not an error
    """Wait until an event is set, for at most `timeout` seconds, then clear the event."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()
    event.clear()


class BackgroundTasks:
    """Starts tasks, and keeps references to them so that they are not garbage-collected before they have ended.

    The event loop itself has only weak references to its tasks.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], context: Context | None = None) -> asyncio.Task[Any]:
        """Run a coroutine as a task of the running event loop.

        Args:
            coroutine: the coroutine to run.
            context: the context in which the task runs. The default is a copy of the current context.
        """
        task = asyncio.get_running_loop().create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def pending(self) -> Collection[asyncio.Task[Any]]:
        """The tasks that `spawn` has started and that have not ended."""
        return tuple(self._tasks)
