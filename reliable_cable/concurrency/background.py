"""Background threads for work that no caller waits for."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from django.db import connections

from .daemon_executor import DaemonExecutor
from .threads import IDLE_TIME, close_old_connections

T = TypeVar("T")
logger = logging.getLogger("reliable_cable")

#: Seconds before work that failed is tried again: at first, and at most.
MIN_DELAY: Final = 0.05
MAX_DELAY: Final = 1.0


class _Queue(Generic[T]):
    """The work of one process, and the thread that does it."""

    def __init__(self, name: str) -> None:
        self.changed = threading.Condition()
        self.items: deque[T] = deque()
        #: The bytes of `items`.
        self.size = 0
        #: The items that are being handled.
        self.taken: Sequence[T] = ()
        #: Whether the thread is at work, or about to be.
        self.active = False
        self.thread = DaemonExecutor(name, 1, idle_time=IDLE_TIME, at_end=connections.close_all)

    @property
    def empty(self) -> bool:
        return not self.items and not self.taken


class Worker(Generic[T]):
    """Handles items in a background thread of the process, in their order.

    The thread is started when it is needed. A forked child begins with an empty queue and starts its own.

    Args:
        name: the thread's name.
        handle: takes the waiting items, `batch` at most; returns those to be handled again after a pause.
        patience: how long, in seconds, the exit of the interpreter waits for the queue to become empty.
        batch: the greatest number of items in one call of `handle`.
        limit: the greatest number of bytes in the queue; beyond that the oldest items are dropped.
        size: returns the bytes of an item.
        abandoned: takes the items that were not handled when the interpreter exits.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Sequence[T]], Sequence[T]],
        *,
        patience: float,
        batch: int = 500,
        limit: int | None = None,
        size: Callable[[T], int] = lambda item: 0,
        abandoned: Callable[[Sequence[T]], object] = lambda items: None,
    ) -> None:
        self._name = name
        self._handle = handle
        self._patience = patience
        self._batch = batch
        self._limit = limit
        self._size = size
        self._abandoned = abandoned
        # By process id: in a forked child, the parent's thread does not run and its locks may be held for ever.
        self._queues: dict[int, _Queue[T]] = {}
        _workers.add(self)

    @property
    def _queue(self) -> _Queue[T]:
        pid = os.getpid()
        return self._queues.get(pid) or self._queues.setdefault(pid, _Queue(self._name))

    def put(self, items: Iterable[T]) -> None:
        """Add items to the queue."""
        queue = self._queue
        with queue.changed:
            for item in items:
                queue.items.append(item)
                queue.size += self._size(item)
            while self._limit is not None and queue.size > self._limit:
                queue.size -= self._size(queue.items.popleft())
            if not queue.active:
                try:
                    queue.thread.submit(self._work, queue)
                except RuntimeError:
                    # The interpreter is shutting down.
                    self._abandoned([*queue.items])
                    queue.items.clear()
                    queue.size = 0
                else:
                    queue.active = True

    def flush(self, timeout: float) -> bool:
        """Wait until everything has been handled.

        Args:
            timeout: the longest time to wait, in seconds.

        Returns:
            Whether everything has been handled.
        """
        queue = self._queue
        with queue.changed:
            return queue.changed.wait_for(lambda: queue.empty, timeout)

    def finish(self) -> None:
        """Wait `patience` seconds for the queue to become empty, then give up the items that are left."""
        if not self.flush(self._patience):
            queue = self._queue
            with queue.changed:
                self._abandoned([*queue.taken, *queue.items])

    def _work(self, queue: _Queue[T]) -> None:
        """Handle items until the queue is empty."""
        delay = 0.0
        while batch := self._take(queue):
            again = self._attempt(batch)
            with queue.changed:
                queue.taken = ()
                queue.items.extendleft(reversed(again))
                queue.size += sum(map(self._size, again))
                queue.changed.notify_all()
            if again:
                delay = min(max(2 * delay, MIN_DELAY), MAX_DELAY)
                time.sleep(delay)
            else:
                delay = 0.0

    def _take(self, queue: _Queue[T]) -> Sequence[T]:
        with queue.changed:
            queue.taken = [queue.items.popleft() for _ in range(min(self._batch, len(queue.items)))]
            queue.size -= sum(map(self._size, queue.taken))
            queue.active = bool(queue.taken)
            return queue.taken

    def _attempt(self, batch: Sequence[T]) -> Sequence[T]:
        close_old_connections()
        try:
            return self._handle(batch)
        except Exception:
            logger.exception("The thread %s could not handle %d items; they are dropped.", self._name, len(batch))
            return ()
        finally:
            close_old_connections()


_workers: weakref.WeakSet[Worker[Any]] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    for worker in list(_workers):
        worker.finish()
