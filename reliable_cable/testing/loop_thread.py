"""Runs async code for sync tests. A test uses the same event loop for all of its async code."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import AsyncToSync

T = TypeVar("T")


class LoopThread:
    """An event loop in a separate thread. It runs only while a sync test waits for a coroutine.

    Thread-sensitive code of Django, such as ORM calls, runs in the thread of the test, and therefore in the test's
    transaction. `async_to_sync` would do the same, but with a new event loop for each call. A connection of a client
    must stay in the event loop in which it was opened.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cable-test")

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, and return its result."""
        executor = CurrentThreadExecutor(getattr(AsyncToSync.executors, "current", None))
        AsyncToSync.loop_thread_executors[self._loop] = executor
        try:
            done = self._thread.submit(self._loop.run_until_complete, coroutine)
            executor.run_until_future(done)
            return done.result()
        finally:
            del AsyncToSync.loop_thread_executors[self._loop]

    def close(self) -> None:
        """Cancel the remaining tasks, and close the event loop."""
        self.run(self._cancel_tasks())
        self._thread.shutdown()
        self._loop.close()

    async def _cancel_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()
