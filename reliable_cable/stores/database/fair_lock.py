"""`FairLock`, which is granted to waiting threads in the order of their arrival."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class FairLock:
    """A lock with a FIFO queue.

    `threading.Lock` guarantees no order, so a busy thread could keep all other threads waiting.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        #: An event for each thread, in the order of arrival. The first event is set, and its thread has the lock. The
        #: other threads are waiting.
        self._queue: dict[threading.Event, None] = {}

    @contextmanager
    def hold(self, timeout: float) -> Iterator[bool]:
        """Return a context manager that waits up to `timeout` seconds for the lock.

        Its value is True if the lock was granted. If it is False, the block runs without the lock.
        """
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
