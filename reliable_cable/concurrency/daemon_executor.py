"""An executor with daemon threads. A job that hangs in a daemon thread does not prevent the process from exiting."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: How long, in seconds, a call may wait for a thread before the wait is reported.
MAX_WAIT: Final = 1.0
#: The minimum time, in seconds, between two reports of long waits.
REPORT_INTERVAL: Final = 60.0

#: A call whose result is passed to a future.
_Job = Callable[[], None]


def _run(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


#: The queue from which a thread receives its jobs. None is put into it to end the thread.
_Inbox = SimpleQueue[_Job | None]


class DaemonExecutor(Executor):
    """Runs calls in daemon threads, which are started on demand and end after some idle time.

    When the interpreter exits, it waits for all jobs of a `concurrent.futures.ThreadPoolExecutor`, without a limit. It
    does not wait for daemon threads. Call `end_threads` to wait for them for a limited time.

    The next job runs in the thread that became idle last, so that as few threads as possible stay alive.

    Args:
        name: the name of the threads.
        size: the maximum number of threads.
        idle_time: how long, in seconds, a thread waits for a job before it ends.
        at_end: a function that each thread calls before it ends.
        on_wait: a function that is called if a call has waited for `MAX_WAIT` or longer, because all threads are busy.
            Its argument is the time, in seconds, for which the call has waited. It is called at most once in each
            `REPORT_INTERVAL`.
    """

    def __init__(
        self,
        name: str,
        size: int,
        *,
        idle_time: float,
        at_end: Callable[[], None],
        on_wait: Callable[[float], None] | None = None,
    ) -> None:
        self._name = name
        self._size = size
        self._idle_time = idle_time
        self._at_end = at_end
        self._on_wait = on_wait
        #: The time before which `on_wait` must not be called again, by the monotonic clock.
        self._report_at = 0.0
        self._lock = threading.Lock()
        #: The jobs that are waiting for a thread, and the times when they were submitted, by the monotonic clock.
        self._jobs: deque[tuple[float, _Job]] = deque()
        self._idle: list[_Inbox] = []
        #: The number of threads that accept jobs.
        self._active = 0
        #: All threads that are alive, including those that no longer accept jobs.
        self._threads: set[threading.Thread] = set()
        #: The threads that will end when no jobs are waiting.
        self._ending: set[threading.Thread] = set()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run a call in one of the threads.

        Since Python 3.12, no thread can be started while the interpreter is shutting down. If a daemon thread, such as
        that of `runserver`, then submits a call, the call is not run, and its future is never done.

        Raises:
            RuntimeError: no thread can be started.
        """
        future: Future[T] = Future()
        job = partial(_run, future, partial(fn, *args, **kwargs))
        waiting_since = None
        with self._lock:
            if self._idle:
                self._idle.pop().put(job)
            elif self._active < self._size:
                try:
                    self._start(job)
                except RuntimeError as error:
                    # A daemon thread is cut off when the process ends. So its errors would only confuse the user.
                    if not threading.current_thread().daemon or "interpreter shutdown" not in str(error):
                        raise
            else:
                self._jobs.append((time.monotonic(), job))
                waiting_since = self._jobs[0][0]
        if waiting_since is not None:
            self._report(waiting_since)
        return future

    def _report(self, waiting_since: float) -> None:
        """Call `on_wait` if a job has waited too long."""
        now = time.monotonic()
        waited = now - waiting_since
        if self._on_wait is None or waited < MAX_WAIT:
            return
        with self._lock:
            if now < self._report_at:
                return
            self._report_at = now + REPORT_INTERVAL
        self._on_wait(waited)

    def _start(self, job: _Job) -> None:
        inbox: _Inbox = SimpleQueue()
        inbox.put(job)
        thread = threading.Thread(target=self._work, args=(inbox,), name=self._name, daemon=True)
        thread.start()
        self._active += 1
        self._threads.add(thread)

    def _work(self, inbox: _Inbox) -> None:
        job = inbox.get()
        try:
            while job is not None:
                job()
                # An idle thread must not keep a reference to its last job and the job's result.
                job = None
                job = self._next(inbox)
            self._at_end()
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())
                self._ending.discard(threading.current_thread())

    def _next(self, inbox: _Inbox) -> _Job | None:
        """Wait for the next job and return it; None if the thread must end."""
        with self._lock:
            waiting = self._jobs.popleft() if self._jobs else None
            if waiting is None:
                if threading.current_thread() in self._ending:
                    self._active -= 1
                    return None
                self._idle.append(inbox)
        if waiting is not None:
            since, job = waiting
            self._report(since)
            return job
        try:
            return inbox.get(timeout=self._idle_time)
        except Empty:
            with self._lock:
                if inbox in self._idle:
                    self._idle.remove(inbox)
                    self._active -= 1
                    return None
        # `submit` or `end_threads` has just removed the inbox from `_idle`, and puts a job or None into it.
        return inbox.get()

    def busy_threads(self) -> list[str]:
        """Return the names of the threads that are running a job."""
        with self._lock:
            return [self._name] * (len(self._threads) - len(self._idle))

    def end_threads(self, timeout: float) -> bool:
        """End the idle threads now, and the busy threads when no jobs are waiting. Later jobs start new threads.

        Args:
            timeout: how long, in seconds, to wait for the threads to end.

        Returns:
            True if all threads have ended.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._ending |= self._threads
            idle, self._idle = self._idle, []
            self._active -= len(idle)
            threads = self._threads - {threading.current_thread()}
        for inbox in idle:
            inbox.put(None)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            return not self._threads
