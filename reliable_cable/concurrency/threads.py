"""Runs sync code of channel handlers and stores in bounded pools of daemon threads.

A pool is created when it is first used. A forked child creates its own pools.
"""

import asyncio
import atexit
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from functools import lru_cache, partial, wraps
from typing import Any, Generic, ParamSpec, TypeVar, cast

from asgiref.sync import SyncToAsync

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import AsyncContextError
from reliable_cable.logs import logger

from .batching import BATCH_SIZE, PARALLEL_BATCHES, Batches, Outcome
from .daemon_executor import DaemonExecutor
from .database_connections import close_connections, with_fresh_connections, with_kept_connections
from .django_thread import run_in_django_thread

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

#: The number of threads of this process for store methods that read the database. Store methods that write to the
#: database have the same number of separate threads. So a write that waits for a database lock does not delay reads.
STORE_THREADS = 2

#: How long, in seconds, a thread waits for a job before it ends and closes its database connections. This must be less
#: than 5 seconds, after which PostgreSQL refuses to drop a test database with open connections.
IDLE_TIME = 3.0
#: How long, in seconds, the process delays its exit for jobs that are still running.
EXIT_TIME = 2.0

_executors: dict[tuple[int, str, int], DaemonExecutor] = {}


def sync_only(twin: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a sync function so that it raises `AsyncContextError` in a thread with a running event loop.

    The function would block the event loop. The environment variable `DJANGO_ALLOW_ASYNC_UNSAFE` allows such calls, as
    it does for Django's own functions.

    Args:
        twin: the name of the async version, for the error message.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                pass
            else:
                if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
                    raise AsyncContextError(
                        f"{function.__qualname__}() would block the event loop that runs in this thread; use "
                        f"`await {twin}()`."
                    )
            return function(*args, **kwargs)

        return guarded

    return decorate


def _executor(kind: str, size: int) -> DaemonExecutor:
    key = (os.getpid(), kind, size)
    executor = _executors.get(key)
    if executor is None:
        on_wait = partial(_report_wait, size) if kind == "handler" else None
        executor = DaemonExecutor(f"cable-{kind}", size, idle_time=IDLE_TIME, at_end=close_connections, on_wait=on_wait)
    return _executors.setdefault(key, executor)


def _report_wait(size: int, waited: float) -> None:
    logger.warning(
        "A sync handler has waited %.1f s, because all %d threads for sync handlers are busy. Raise "
        "RELIABLE_CABLE['HANDLER_THREADS'], make slow handlers faster, or write them as `async def`.",
        waited,
        size,
    )


def end_threads(timeout: float = 0.0) -> bool:
    """End the threads of all pools, and close their database connections. Later calls start new threads.

    Idle threads end now, and busy threads after their last job.

    Args:
        timeout: how long, in seconds, to wait for the threads to end.

    Returns:
        True if all threads have ended, so that a test database can be dropped.
    """
    deadline = time.monotonic() + timeout
    ended = [executor.end_threads(max(0.0, deadline - time.monotonic())) for executor in _own_executors()]
    return all(ended)


def busy_threads() -> list[str]:
    """Return the names of the threads of this process that are running a job."""
    return [name for executor in _own_executors() for name in executor.busy_threads()]


def _own_executors() -> list[DaemonExecutor]:
    return [executor for (pid, *_), executor in _executors.copy().items() if pid == os.getpid()]


def _end_threads_at_exit() -> None:
    deadline, ended = time.monotonic() + EXIT_TIME, False
    # Threads may be started meanwhile, for example by a server that runs in another thread.
    while not ended and (remaining := deadline - time.monotonic()) > 0:
        ended = end_threads(remaining)
    if not ended and (busy := busy_threads()):
        logger.error(
            "These threads are still running %g seconds after the process began to exit, and are ended with it: %s.",
            EXIT_TIME,
            ", ".join(busy),
        )


atexit.register(_end_threads_at_exit)


async def run_handler(call: Callable[..., T], *args: Any) -> T:
    """Run a sync channel handler in one of `HANDLER_THREADS` threads.

    If that setting is 0, the handler runs in the thread of Django's ORM calls.
    """
    return await _run("handler", get_settings().handler_threads, with_fresh_connections, call, *args)


async def run_store(call: Callable[..., T], *args: Any) -> T:
    """Run a sync store method that reads. Reads have separate threads, so that slow handlers do not delay them."""
    return await _run("read", _store_threads(), with_kept_connections, call, *args)


async def run_store_write(call: Callable[..., T], *args: Any) -> T:
    """Run a sync store method that writes.

    Writes have separate threads, so that a write that waits for a lock does not delay reads.
    """
    return await _run("write", _store_threads(), with_kept_connections, call, *args)


async def run_fetch(call: Callable[[], T]) -> T:
    """Run a sync function that waits for the network. All these functions share one thread."""
    return await _run("fetch", 1, with_fresh_connections, call)


async def run_publish(call: Callable[[], T]) -> T:
    """Run a sync function that publishes a message over the network. It has threads that other functions do not use."""
    return await _run("publish", STORE_THREADS, with_fresh_connections, call)


def submit_store(call: Callable[[], T]) -> Future[T]:
    """Run a sync store method that writes, outside of the caller's transaction. Async code uses `run_store_write`."""
    return _executor("write", STORE_THREADS).submit(with_kept_connections, call)


def submit_alone(kind: str, call: Callable[[], T]) -> Future[T]:
    """Run a slow sync function in a thread that runs only functions of the same kind.

    Args:
        kind: the kind of the work, which is a part of the thread's name.
        call: the function to run.
    """
    return _executor(kind, 1).submit(call)


def _store_threads() -> int:
    return STORE_THREADS if get_settings().handler_threads else 0


def _guarded(call: Callable[..., T], *args: Any) -> T:
    try:
        return call(*args)
    except StopIteration as error:
        # A future must not raise StopIteration, because a task that awaits it would wait forever.
        raise RuntimeError("a handler raised StopIteration") from error


async def _run(kind: str, size: int, prepared: Callable[..., T], call: Callable[..., T], *args: Any) -> T:
    if size == 0:
        return await run_in_django_thread(partial(with_fresh_connections, _guarded, call, *args))
    result: T = await _runner(prepared, _executor(kind, size))(partial(_guarded, call), *args)
    return result


@lru_cache(maxsize=64)
def _runner(prepared: Callable[..., Any], executor: DaemonExecutor) -> Any:
    """Return an async function that runs its first argument in a thread. It is cached, because it is slow to create."""
    # The annotation in asgiref is ThreadPoolExecutor, but any executor works.
    return SyncToAsync(prepared, thread_sensitive=False, executor=cast(Any, executor))


class BatchedCalls(Generic[A, T]):
    """Runs a sync function for many async callers. Many calls share a *thread hop*, one job of a handler thread.

    Calls that arrive during a thread hop run together in the next one. A call runs in a copy of its caller's context.

    Args:
        function: a function with one argument. If it raises an error, the caller that passed the argument receives it.
        size: the maximum number of calls in a thread hop.
        parallel: the maximum number of thread hops at the same time in an event loop.
    """

    def __init__(self, function: Callable[[A], T], *, size: int = BATCH_SIZE, parallel: int = PARALLEL_BATCHES) -> None:
        self._function = function
        self._batches: Batches[partial[T], T] = Batches(partial(run_handler, _outcomes), size=size, parallel=parallel)

    async def __call__(self, argument: A) -> T:
        """Call the function and return its result."""
        # The context is copied, because the task of another caller may run the call.
        return await self._batches(partial(copy_context().run, _guarded, self._function, argument))


def _outcomes(calls: Sequence[partial[T]]) -> list[Outcome[T]]:
    outcomes: list[Outcome[T]] = []
    for call in calls:
        try:
            outcomes.append((call(), None))
        except Exception as error:
            outcomes.append((None, error))
    return outcomes
