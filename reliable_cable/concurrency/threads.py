"""Runs sync code of channel handlers and stores in bounded pools of daemon threads.

A pool is created when it is first used. A forked child creates its own pools.
"""

import asyncio
import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial, wraps
from typing import Any, Generic, ParamSpec, TypeVar, cast

from asgiref.sync import AsyncToSync, SyncToAsync
from django.db import connections
from django.db.backends.signals import connection_created

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import AsyncContextError
from reliable_cable.logs import logger

from .batching import BATCH_SIZE, PARALLEL_BATCHES, Batches, Outcome
from .daemon_executor import DaemonExecutor

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

#: How many threads of this process run store methods that read the database. The same number of other
#: threads run methods that write to it, so that a write that is waiting for the database's lock does not delay reads.
STORE_THREADS = 2

#: How long, in seconds, a thread waits for a job before it ends and closes its database connections. PostgreSQL waits 5
#: seconds for other connections to close before it refuses to drop a test database, so this must be less.
IDLE_TIME = 3.0
#: How long, in seconds, the exit of the process waits for jobs that are still running.
EXIT_TIME = 2.0
#: How long, in seconds, a store thread may be idle before it checks its database connection at the next use.
CHECK_AFTER = 1.0
#: How long, in seconds, a store thread may use a database connection after its `CONN_MAX_AGE` has passed.
EXTRA_AGE = 60.0
#: The shortest time, in seconds, between two checks of the database connections that async handlers share.
REFRESH_INTERVAL = 1.0

_executors: dict[tuple[int, str, int], DaemonExecutor] = {}

#: The threads that may have an open database connection.
_connected: set[int] = set()
#: The attribute `used_at` is the time when this store thread finished its last job, by the monotonic clock.
_local = threading.local()


def _remember_connection(**kwargs: Any) -> None:
    _connected.add(threading.get_ident())


connection_created.connect(_remember_connection)


def sync_only(twin: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function raise `AsyncContextError` in a thread with a running event loop, which it would block.

    The environment variable `DJANGO_ALLOW_ASYNC_UNSAFE` allows such calls, as it does for Django's own functions.

    Args:
        twin: the name of the async function to use instead, for the error message.
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
    """Close this thread's database connections before it ends."""
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
    """End the threads of this process and close their database connections; later calls start new threads.

    Idle threads end at once, the others after their last job. After this has returned True, a test database can be
    dropped.

    Args:
        timeout: how long, in seconds, to wait for the threads to end.

    Returns:
        Whether all threads have ended.
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
    """Run a sync store method that reads. Reads have their own threads, so that slow handlers do not delay them."""
    return await _run("read", _store_threads(), with_kept_connections, call, *args)


async def run_store_write(call: Callable[..., T], *args: Any) -> T:
    """Run a sync store method that writes.

    Writes have their own threads, so that a write that is waiting for a lock does not delay reads.
    """
    return await _run("write", _store_threads(), with_kept_connections, call, *args)


async def run_fetch(call: Callable[[], T]) -> T:
    """Run a sync function that may wait for the network, in a thread that all such functions share."""
    return await _run("fetch", 1, _with_fresh_connections, call)


def submit_store(call: Callable[[], T]) -> Future[T]:
    """Run a sync store method that writes, from sync code, outside of the caller's transaction."""
    return _executor("write", STORE_THREADS).submit(with_kept_connections, call)


def submit_alone(kind: str, call: Callable[[], T]) -> Future[T]:
    """Run a sync function that takes long, in the only thread of its kind.

    Args:
        kind: names the thread.
        call: the function.
    """
    return _executor(kind, 1).submit(call)


def _store_threads() -> int:
    return STORE_THREADS if get_settings().handler_threads else 0


_refreshed = 0.0


def has_own_thread() -> bool:
    """Return whether thread-sensitive sync code of this task runs outside of the shared thread of the process.

    `asgiref.sync.SyncToAsync` chooses the thread, and this function repeats its choice. If a thread is waiting in
    `async_to_sync`, asgiref uses that thread, which it finds in the context (`AsyncToSync.executors.current`) or by the
    event loop (`AsyncToSync.loop_thread_executors`). Otherwise asgiref uses the thread of a `ThreadSensitiveContext`.
    Without such a context, it uses the shared thread.
    """
    return (
        getattr(AsyncToSync.executors, "current", None) is not None
        or SyncToAsync.thread_sensitive_context.get(None) is not None
        or asyncio.get_running_loop() in AsyncToSync.loop_thread_executors
    )


def refresh_connections() -> None:
    """Check the database connections of async handlers, in the shared thread of the process.

    This queues the check and does not wait for it, because other handlers may keep that thread busy. Calling it often
    costs little: at most one check is queued in each `REFRESH_INTERVAL`.
    """
    global _refreshed
    now = time.monotonic()
    if not _connected or now - _refreshed <= REFRESH_INTERVAL or has_own_thread():
        return
    _refreshed = now
    with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
        SyncToAsync.single_thread_executor.submit(close_old_connections)


def close_shared_connections(timeout: float) -> None:
    """Close the database connections of the shared thread of the process, so that a test database can be dropped.

    Args:
        timeout: how long, in seconds, to wait for that thread.
    """
    if _connected - {threading.get_ident()}:
        with contextlib.suppress(TimeoutError):
            SyncToAsync.single_thread_executor.submit(_close_connections).result(timeout)


def close_old_connections() -> None:
    """Close this thread's database connections that are broken or too old, except those with an open transaction.

    Connections that stay open are checked at their next use.

    Django's function of the same name also closes connections with an open transaction, because it is called only
    between requests.
    """
    thread = threading.get_ident()
    if thread not in _connected:
        return
    opened = connections.all(initialized_only=True)
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
    finally:
        close_old_connections()


def with_kept_connections(call: Callable[..., T], *args: Any) -> T:
    """Run a call and leave this thread's database connections open, because the next call usually follows soon.

    A connection that is older than its `CONN_MAX_AGE` by more than `EXTRA_AGE` seconds is closed before the call. After
    an error, and after `CHECK_AFTER` idle seconds, a connection is checked before its next use.
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
        # A future cannot hold a StopIteration: awaiting it would never end.
        raise RuntimeError("a handler raised StopIteration") from error


async def _run(kind: str, size: int, prepared: Callable[..., T], call: Callable[..., T], *args: Any) -> T:
    if size == 0:
        # The call runs in the thread of Django's ORM calls, and takes part in transactions that are open there.
        runner: Any = SyncToAsync(_with_fresh_connections, thread_sensitive=True)
    else:
        # asgiref declares ThreadPoolExecutor, but any executor works.
        runner = SyncToAsync(prepared, thread_sensitive=False, executor=cast(Any, _executor(kind, size)))
    result: T = await runner(partial(_guarded, call), *args)
    return result


class BatchedCalls(Generic[A, T]):
    """Runs a sync function for many async callers, with many calls in one thread hop.

    Calls that arrive during a thread hop run together in the next one. Each runs in a copy of its caller's context.

    Args:
        function: called with one argument. If it raises an error, the caller that passed this argument receives it.
        size: the maximum number of calls in one thread hop.
        parallel: the maximum number of thread hops at the same time, for each event loop.
    """

    def __init__(self, function: Callable[[A], T], *, size: int = BATCH_SIZE, parallel: int = PARALLEL_BATCHES) -> None:
        self._function = function
        self._batches: Batches[partial[T], T] = Batches(partial(run_handler, _outcomes), size=size, parallel=parallel)

    async def __call__(self, argument: A) -> T:
        """Call the function and return its result."""
        # The call gets a copy of its caller's context, because another caller's task may run it.
        return await self._batches(partial(copy_context().run, _guarded, self._function, argument))


def _outcomes(calls: Sequence[partial[T]]) -> list[Outcome[T]]:
    outcomes: list[Outcome[T]] = []
    for call in calls:
        try:
            outcomes.append((call(), None))
        except Exception as error:
            outcomes.append((None, error))
    return outcomes
