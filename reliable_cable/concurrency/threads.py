"""Runs sync code of channel handlers and stores in bounded pools of daemon threads.

A pool is created when it is first used. A forked child creates its own pools.
"""

import asyncio
import atexit
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from functools import lru_cache, partial, wraps
from typing import Any, Generic, ParamSpec, TypeVar, cast

from asgiref.sync import AsyncToSync, SyncToAsync
from django.db import connections
from django.db.backends.signals import connection_created
from django.dispatch import receiver

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import AsyncContextError
from reliable_cable.logs import logger

from .batching import BATCH_SIZE, PARALLEL_BATCHES, Batches, Outcome
from .daemon_executor import DaemonExecutor
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
#: The idle time, in seconds, after which a store thread checks its database connection before it uses it again.
CHECK_AFTER = 1.0
#: How long, in seconds, a store thread may use a database connection beyond its `CONN_MAX_AGE`.
EXTRA_AGE = 60.0
#: The minimum time, in seconds, between two checks of the database connections that async handlers share.
REFRESH_INTERVAL = 1.0
#: The interval, in seconds, in which a thread that is not in `_connected` looks for open connections nevertheless.
#: Django sends no signal for a connection that was opened but not set up, because the database was just being stopped.
LOOK_INTERVAL = 1.0

_executors: dict[tuple[int, str, int], DaemonExecutor] = {}

#: The threads that have set up a database connection and have not closed it.
_connected: set[int] = set()
#: The times, by the monotonic clock, when the last job of the current store thread ended (`used_at`), and of the next
#: look for open connections if this thread is not in `_connected` (`look_at`).
_local = threading.local()


@receiver(connection_created)
def _remember_connection(**kwargs: Any) -> None:
    _connected.add(threading.get_ident())


def sync_only(twin: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a sync function so that it raises `AsyncContextError` in a thread with a running event loop.

    The function would block the event loop. The environment variable `DJANGO_ALLOW_ASYNC_UNSAFE` allows such calls, as
    it does for Django's own functions.

    Args:
        twin: the name of the async twin, for the error message.
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


def _close_connections() -> None:
    """Close the database connections of the current thread."""
    connections.close_all()
    _connected.discard(threading.get_ident())


def _executor(kind: str, size: int) -> DaemonExecutor:
    key = (os.getpid(), kind, size)
    executor = _executors.get(key)
    if executor is None:
        on_wait = partial(_report_wait, size) if kind == "handler" else None
        executor = DaemonExecutor(
            f"cable-{kind}", size, idle_time=IDLE_TIME, at_end=_close_connections, on_wait=on_wait
        )
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
    if not end_threads(EXIT_TIME):
        logger.error(
            "These threads are still running %g seconds after the process began to exit, and are ended with it: %s.",
            EXIT_TIME,
            ", ".join(busy_threads()),
        )


atexit.register(_end_threads_at_exit)


async def run_handler(call: Callable[..., T], *args: Any) -> T:
    """Run a sync channel handler in one of `HANDLER_THREADS` threads.

    If that setting is 0, the handler runs in the thread of Django's ORM calls.
    """
    return await _run("handler", get_settings().handler_threads, _with_fresh_connections, call, *args)


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
    return await _run("fetch", 1, _with_fresh_connections, call)


async def run_publish(call: Callable[[], T]) -> T:
    """Run a sync function that publishes a message over the network. It has threads that other functions do not use."""
    return await _run("publish", STORE_THREADS, _with_fresh_connections, call)


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


_refreshed = 0.0


def has_own_thread() -> bool:
    """Return whether thread-sensitive sync code of this task has a thread other than the shared thread of the process.

    `asgiref.sync.SyncToAsync` chooses the thread, and this function applies the same rules. There are three
    cases in which asgiref does not use the shared thread. It may find a thread that waits for this task in
    `async_to_sync`, either in the context (`AsyncToSync.executors.current`) or by the event loop
    (`AsyncToSync.loop_thread_executors`). Or there is a `ThreadSensitiveContext`, which has its own thread.
    """
    return (
        getattr(AsyncToSync.executors, "current", None) is not None
        or SyncToAsync.thread_sensitive_context.get(None) is not None
        or asyncio.get_running_loop() in AsyncToSync.loop_thread_executors
    )


async def release_own_thread() -> None:
    """End the thread that Django keeps for an HTTP request, and close its database connections.

    Call this before a long-lived response. Otherwise, each reader of the response would occupy a thread, and a
    database connection if a middleware has used one. If sync code needs the thread later, asgiref starts a new one.

    If `HANDLER_THREADS` is 0, this does nothing, because handlers run in that thread. A middleware may have prepared
    its connections for them. It also does nothing in a view below a sync middleware: the middleware blocks the thread
    until the view returns, so waiting for the thread would never end.
    """
    if not get_settings().handler_threads or getattr(AsyncToSync.executors, "current", None) is not None:
        return
    context = SyncToAsync.thread_sensitive_context.get(None)
    executor = None if context is None else SyncToAsync.context_to_thread_executor.pop(context, None)
    if executor is not None:
        # The executor runs no other job later, because asgiref cannot find it any more.
        closing = executor.submit(_close_connections)
        executor.shutdown(wait=False)
        await asyncio.wrap_future(closing)


def context_of_shared_thread() -> Context:
    """Return a copy of the current context, with which thread-sensitive sync code uses the process's shared thread.

    A request starts a task with this context if the task must not use the thread of the request. If `HANDLER_THREADS`
    is 0, the context is not changed, and the task uses the thread of the request.
    """
    context = copy_context()
    if get_settings().handler_threads:
        context.run(SyncToAsync.thread_sensitive_context.set, cast(Any, None))
    return context


def refresh_connections() -> None:
    """Check the database connections of async handlers, in the shared thread of the process.

    The caller does not wait for the check, because other handlers may keep the shared thread busy. At most one check is
    queued in each `REFRESH_INTERVAL`, so that frequent calls cost little.
    """
    global _refreshed
    now = time.monotonic()
    if now - _refreshed <= REFRESH_INTERVAL or has_own_thread():
        return
    _refreshed = now
    with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
        SyncToAsync.single_thread_executor.submit(close_old_connections)


def close_shared_connections(timeout: float) -> None:
    """Close the database connections of the shared thread of the process, so that a test database can be dropped.

    Args:
        timeout: how long, in seconds, to wait for the shared thread.
    """
    if _connected - {threading.get_ident()}:
        with contextlib.suppress(TimeoutError):
            SyncToAsync.single_thread_executor.submit(_close_connections).result(timeout)


def close_old_connections() -> None:
    """Close this thread's database connections that are broken or too old.

    Connections that stay open are checked when they are next used. Connections with an open transaction are never
    closed here. Django's function of the same name closes them, too: it is called only between requests.
    """
    thread, now = threading.get_ident(), time.monotonic()
    if thread not in _connected:
        # A look for each handler would cost too much, because Django takes some microseconds to list connections.
        look_at = getattr(_local, "look_at", math.inf)
        if look_at > now:
            _local.look_at = min(look_at, now + LOOK_INTERVAL)
            return
    _local.look_at = now + LOOK_INTERVAL
    opened = [each for each in connections.all(initialized_only=True) if each.connection is not None]
    for connection in opened:
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
            _check_when_used(connection)
    if all(connection.connection is None for connection in opened):
        _connected.discard(thread)


def _check_when_used(connection: Any) -> None:
    """Make Django check a connection before its next use, because the database may have been restarted."""
    # The option CONN_HEALTH_CHECKS does the same for each request.
    connection.health_check_enabled = True
    connection.health_check_done = False


def _with_fresh_connections(call: Callable[..., T], *args: Any) -> T:
    close_old_connections()
    try:
        return call(*args)
    except Exception:
        _local.look_at = 0.0  # the error may be that a connection could not be set up
        raise
    finally:
        close_old_connections()


def with_kept_connections(call: Callable[..., T], *args: Any) -> T:
    """Run a call, and leave this thread's database connections open afterwards, because more calls usually follow.

    Before the call, a connection is closed if its age exceeds `CONN_MAX_AGE` by more than `EXTRA_AGE` seconds. After an
    error, or after `CHECK_AFTER` idle seconds, a connection is checked before its next use.
    """
    now = time.monotonic()
    idle = now - getattr(_local, "used_at", now) > CHECK_AFTER
    for connection in connections.all(initialized_only=True):
        if connection.close_at is not None and now > connection.close_at + EXTRA_AGE:
            connection.close()
        elif idle or connection.errors_occurred:
            connection.errors_occurred = False
            _check_when_used(connection)
    try:
        return call(*args)
    finally:
        _local.used_at = time.monotonic()


def _guarded(call: Callable[..., T], *args: Any) -> T:
    try:
        return call(*args)
    except StopIteration as error:
        # A future must not raise StopIteration, because a task that awaits it would wait forever.
        raise RuntimeError("a handler raised StopIteration") from error


async def _run(kind: str, size: int, prepared: Callable[..., T], call: Callable[..., T], *args: Any) -> T:
    if size == 0:
        return await run_in_django_thread(partial(_with_fresh_connections, _guarded, call, *args))
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
