"""A lock that is granted to waiting threads in the order of their arrival."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class FairLock:
    """A lock with a FIFO queue.

    `threading.Lock` does not promise an order. A busy thread can keep all others waiting.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        #: One event for each thread, in order. The first event is set, and its thread holds the lock. The other threads
        #: are waiting.
        self._queue: dict[threading.Event, None] = {}

    @contextmanager
    def hold(self, timeout: float) -> Iterator[bool]:
        """Hold the lock in a context, if it is granted within `timeout` seconds. Yield whether it was granted."""
        granted = threading.Event()
        with self._mutex:
            self._queue[granted] = None
            self._grant()
        try:
            held = granted.wait(timeout)
            if not held:
                self._leave(granted)
            yield held
        finally:
            self._leave(granted)

    def _leave(self, granted: threading.Event) -> None:
        with self._mutex:
            self._queue.pop(granted, None)
            self._grant()

    def _grant(self) -> None:
        for first in self._queue:
            first.set()
            break
