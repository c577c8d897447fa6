"""Background threads for work that no caller waits for."""

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from django.db import connections

from reliable_cable.logs import logger

from .daemon_executor import DaemonExecutor
from .database_connections import close_old_connections
from .threads import IDLE_TIME

T = TypeVar("T")

#: The pause, in seconds, before failed items are retried for the first time. The pause doubles with each retry.
MIN_RETRY_DELAY: Final = 0.05
#: The maximum pause, in seconds, before a retry.
MAX_RETRY_DELAY: Final = 1.0


class _Queue(Generic[T]):
    """A queue of one process, with the thread that handles its items."""

    def __init__(self, name: str) -> None:
        #: Guards the other attributes, and is notified after each batch.
        self.changed = threading.Condition()
        self.items: deque[T] = deque()
        #: The total size of `items`, in bytes.
        self.size = 0
        #: The batch that is being handled now. Its items are no longer in `items`.
        self.current: Sequence[T] = ()
        #: Whether the thread is running or has been asked to run.
        self.active = False
        #: Whether the last batch has failed.
        self.failing = False
        #: The last time when the queue was empty or a batch succeeded, by the monotonic clock.
        self.progress = 0.0
        self.thread = DaemonExecutor(name, 1, idle_time=IDLE_TIME, at_end=connections.close_all)

    @property
    def empty(self) -> bool:
        return not self.items and not self.current


class BackgroundWorker(Generic[T]):
    """Handles items in a background thread, in the order in which they were put.

    The thread is started when the first item is put. A forked child begins with an empty queue and starts its own
    thread.

    Args:
        name: the thread's name.
        handle: a function that is called with a batch of items. It returns the items to retry after a pause.
        exit_timeout: how long, in seconds, the interpreter waits at its exit for the queue to become empty.
        batch_size: the maximum number of items in a batch.
        max_bytes: the maximum size of all queued items, in bytes. If it is exceeded, the oldest items are dropped. None
            means no limit.
        size_of: a function that returns the size of an item, in bytes.
        on_abandoned: a function that is called when the interpreter exits, with the items that were not handled.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Sequence[T]], Sequence[T]],
        *,
        exit_timeout: float,
        batch_size: int = 500,
        max_bytes: int | None = None,
        size_of: Callable[[T], int] = lambda item: 0,
        on_abandoned: Callable[[Sequence[T]], object] = lambda items: None,
    ) -> None:
        self._name = name
        self._handle = handle
        self._exit_timeout = exit_timeout
        self._batch_size = batch_size
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._on_abandoned = on_abandoned
        # The queues by process id. In a forked child, the parent's thread does not run, and its locks may never be
        # released.
        self._queues: dict[int, _Queue[T]] = {}
        _workers.add(self)

    @property
    def _queue(self) -> _Queue[T]:
        pid = os.getpid()
        return self._queues.get(pid) or self._queues.setdefault(pid, _Queue(self._name))

    def put(self, items: Iterable[T]) -> None:
        """Append items to the queue, without waiting for them to be handled."""
        queue = self._queue
        with queue.changed:
            if queue.empty:
                queue.progress = time.monotonic()
            for item in items:
                queue.items.append(item)
                queue.size += self._size_of(item)
            while self._max_bytes is not None and queue.size > self._max_bytes:
                queue.size -= self._size_of(queue.items.popleft())
            if not queue.active:
                try:
                    queue.thread.submit(self._work, queue)
                except RuntimeError:
                    # The interpreter is shutting down.
                    self._on_abandoned([*queue.items])
                    queue.items.clear()
                    queue.size = 0
                else:
                    queue.active = True

    def flush(self, timeout: float) -> bool:
        """Wait until the queue is empty and its last batch has been handled.

        Args:
            timeout: the maximum time to wait, in seconds.

        Returns:
            True if all items have been handled.
        """
        queue = self._queue
        with queue.changed:
            return queue.changed.wait_for(lambda: queue.empty, timeout)

    def put_and_wait(self, items: Iterable[T], timeout: float) -> bool:
        """Append items to the queue, and wait until all items have been handled.

        The wait also ends when a batch fails, or `timeout` seconds after the last progress before this call. So this
        method does not wait at all if the last batch has failed, or if there was no progress for that time.

        Args:
            items: the items to append.
            timeout: the maximum time, in seconds, between the last progress before this call and the end of the wait.
                Progress means that a batch has succeeded, or that the queue is empty.

        Returns:
            True if all items have been handled.
        """
        queue = self._queue
        with queue.changed:
            self.put(items)
            remaining = queue.progress + timeout - time.monotonic()
            queue.changed.wait_for(lambda: queue.empty or queue.failing, max(0.0, remaining))
            return queue.empty

    def finish(self, began: float) -> None:
        """Wait for the queue to be empty, for a limited time. Pass the remaining items to `on_abandoned`.

        Args:
            began: the time from which `exit_timeout` counts, by the monotonic clock.
        """
        if not self.flush(began + self._exit_timeout - time.monotonic()):
            queue = self._queue
            with queue.changed:
                self._on_abandoned([*queue.current, *queue.items])

    def _work(self, queue: _Queue[T]) -> None:
        """Handle items until the queue is empty."""
        delay = 0.0
        while batch := self._next_batch(queue):
            failed = self._attempt(batch)
            with queue.changed:
                queue.current = ()
                queue.failing = bool(failed)
                if not failed:
                    queue.progress = time.monotonic()
                queue.items.extendleft(reversed(failed))
                queue.size += sum(map(self._size_of, failed))
                queue.changed.notify_all()
            if failed:
                delay = min(max(2 * delay, MIN_RETRY_DELAY), MAX_RETRY_DELAY)
                time.sleep(delay)
            else:
                delay = 0.0

    def _next_batch(self, queue: _Queue[T]) -> Sequence[T]:
        with queue.changed:
            queue.current = [queue.items.popleft() for _ in range(min(self._batch_size, len(queue.items)))]
            queue.size -= sum(map(self._size_of, queue.current))
            queue.active = bool(queue.current)
            return queue.current

    def _attempt(self, batch: Sequence[T]) -> Sequence[T]:
        """Handle a batch. Return the items to retry."""
        close_old_connections()
        try:
            return self._handle(batch)
        except Exception:
            logger.exception("The thread %s could not handle %d items; they are dropped.", self._name, len(batch))
            return ()
        finally:
            close_old_connections()


_workers: weakref.WeakSet[BackgroundWorker[Any]] = weakref.WeakSet()


@atexit.register
def finish_workers() -> None:
    """Wait until the queues of all workers of this process are empty, for a limited time. This is called at exit."""
    began = time.monotonic()
    for worker in list(_workers):
        worker.finish(began)
