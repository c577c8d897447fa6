"""An event loop with virtual time: a test runs it step by step, and no delay takes real time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _InstantSelector(selectors.DefaultSelector):
    """A selector that never waits. It adds the time for which it would have waited to `now`."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("The event loop has nothing to do, and would wait for ever.")
            self.now += max(timeout, 0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that runs only while a test calls one of its methods. Its clock jumps from timer to timer.

    Code in this loop may not wait for a thread or a socket.
    """

    def __init__(self) -> None:
        self._clock = _InstantSelector()
        super().__init__(self._clock)
        #: The errors that no code in the loop has caught.
        self.errors: list[dict[str, Any]] = []
        self.set_exception_handler(lambda loop, context: self.errors.append(context))

    def time(self) -> float:
        """Return the virtual time."""
        return self._clock.now

    def call(self, function: Callable[[], T]) -> T:
        """Call a function inside the loop, in one iteration, and return its result."""
        results: list[T] = []
        errors: list[Exception] = []

        def run() -> None:
            try:
                results.append(function())
            except Exception as error:
                errors.append(error)
            finally:
                self.stop()

        self.call_soon(run)
        self.run_forever()
        if errors:
            raise errors[0]
        return results[0]

    def iterate(self, count: int) -> None:
        """Run iterations of the loop. The time stays the same."""
        for _ in range(count):
            self.call(lambda: None)

    def run_for(self, seconds: float) -> None:
        """Run the loop until some virtual time has passed."""
        self.run_until_complete(asyncio.sleep(seconds))

    def finish(self) -> None:
        """Cancel all tasks and close the loop."""
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()
