"""A lock that is granted to waiting threads in the order of their arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class FairLock:
    """A lock with a FIFO queue.

    `threading.Lock` promises no order, so that a busy thread can keep all others waiting.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held = False
        #: A locked lock for each waiting thread. Releasing it hands the fair lock to that thread.
        self._waiters: deque[threading.Lock] = deque()

    def acquire(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the lock; return whether the caller got it."""
        waiter = threading.Lock()
        with self._mutex:
            if not self._held:
                self._held = True
                return True
            waiter.acquire()
            self._waiters.append(waiter)
        acquired = False
        try:
            acquired = waiter.acquire(timeout=timeout)
        finally:
            if not acquired:
                with self._mutex:
                    still_waiting = waiter in self._waiters
                    if still_waiting:
                        self._waiters.remove(waiter)
                if not still_waiting:
                    # The lock was handed to this thread after its wait had ended. The caller will not release it.
                    self.release()
        return acquired

    def release(self) -> None:
        """Hand the lock to the first waiter, if there is one."""
        with self._mutex:
            if self._waiters:
                self._waiters.popleft().release()
            else:
                self._held = False

    @contextmanager
    def hold(self, timeout: float) -> Iterator[bool]:
        """Hold the lock in a context if it is free within `timeout` seconds; yield whether it is held."""
        acquired = self.acquire(timeout)
        try:
            yield acquired
        finally:
            if acquired:
                self.release()
