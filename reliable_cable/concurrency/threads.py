"""Where sync code runs: bounded pools of daemon threads for channel handlers and for the stores.

Nothing here survives a fork: pools are kept by process id, and made when first used.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial, wraps
from typing import Any, Generic, ParamSpec, TypeVar, cast

from asgiref.sync import AsyncToSync, SyncToAsync
from django.db import connections
from django.db.backends.signals import connection_created

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import AsyncContextError

from .daemon_executor import DaemonExecutor

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

#: How many threads of this process read the stores' tables, and how many others write them. So a write that waits for
#: the database's lock delays no read.
STORE_THREADS = 2

#: How long, in seconds, a thread waits for a job before it ends and closes its database connections. PostgreSQL waits
#: 5 seconds for others to disconnect before it refuses to drop a database: a test database, for one.
IDLE_TIME = 3.0
#: How long, in seconds, a process that exits waits for jobs that are still running.
EXIT_TIME = 2.0
#: After how many idle seconds a store thread checks its database connection before it uses it.
CHECK_AFTER = 1.0
#: How long, in seconds, a store thread may use a database connection beyond its `CONN_MAX_AGE`.
EXTRA_AGE = 60.0
#: Seconds between checks of the connections that async handlers share.
REFRESH_INTERVAL = 1.0

_executors: dict[tuple[int, str, int], DaemonExecutor] = {}

#: Threads in which a database connection was opened, and was not found closed since.
_connected: set[int] = set()
#: `used_at`: when this store thread last finished a job, by the monotonic clock.
_local = threading.local()


def _remember_connection(**kwargs: Any) -> None:
    _connected.add(threading.get_ident())


connection_created.connect(_remember_connection)


def sync_only(twin: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function raise `AsyncContextError` in a thread with a running event loop, which it would block.

    The environment variable `DJANGO_ALLOW_ASYNC_UNSAFE` allows such calls, as it does for Django's own functions.

    Args:
        twin: the name of the async function to use instead.
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
        new = DaemonExecutor(f"cable-{kind}", size, idle_time=IDLE_TIME, at_end=_close_connections)
        executor = _executors.setdefault(key, new)
    return executor


def end_threads(timeout: float = 0.0) -> bool:
    """End the threads of this process and close their database connections; later calls start new threads.

    Idle threads end at once, the others after their last job. A test database can be dropped once this returned True.

    Args:
        timeout: how long, in seconds, to wait for that.

    Returns:
        Whether all threads have ended.
    """
    deadline = time.monotonic() + timeout
    ended = True
    for (pid, *_), executor in _executors.copy().items():
        if pid == os.getpid():
            ended = executor.end_threads(max(0.0, deadline - time.monotonic())) and ended
    return ended


atexit.register(end_threads, EXIT_TIME)


async def run_handler(call: Callable[..., T], *args: Any) -> T:
    """Run a sync channel handler; those of different connections run in parallel."""
    return await _run("handler", get_settings().handler_threads, _with_fresh_connections, call, *args)


async def run_store(call: Callable[..., T], *args: Any) -> T:
    """Run a store's sync method that reads, apart from the handlers, so that a slow handler delays no delivery."""
    return await _run("read", _store_threads(), _with_kept_connections, call, *args)


async def run_store_write(call: Callable[..., T], *args: Any) -> T:
    """Run a store's sync method that writes, apart from the reads, which do not wait for the database's write lock."""
    return await _run("write", _store_threads(), _with_kept_connections, call, *args)


def submit_store(call: Callable[[], T]) -> Future[T]:
    """Run a store's sync method that writes in a store thread, from sync code: on a connection of its own."""
    return _executor("write", STORE_THREADS).submit(_with_kept_connections, call)


def _store_threads() -> int:
    return STORE_THREADS if get_settings().handler_threads else 0


_refreshed = 0.0


def has_own_thread() -> bool:
    """Return whether thread-sensitive sync code of this task runs outside of the thread that the process shares.

    This follows `asgiref.sync.SyncToAsync`. It uses the thread that waits in `async_to_sync`, if there is one: the
    context has it (`AsyncToSync.executors.current`), or the event loop (`AsyncToSync.loop_thread_executors`). Else it
    uses the thread of a `ThreadSensitiveContext`, or the one that the process shares.
    """
    return (
        getattr(AsyncToSync.executors, "current", None) is not None
        or SyncToAsync.thread_sensitive_context.get(None) is not None
        or asyncio.get_running_loop() in AsyncToSync.loop_thread_executors
    )


def refresh_connections() -> None:
    """Check the database connections of async handlers, before the next job of the thread that the process shares.

    This waits for nothing, because other handlers may keep that thread busy for long. It is cheap when called often.
    """
    global _refreshed
    now = time.monotonic()
    if not _connected or now - _refreshed <= REFRESH_INTERVAL or has_own_thread():
        return
    _refreshed = now
    with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
        SyncToAsync.single_thread_executor.submit(close_old_connections)


def close_old_connections() -> None:
    """Close this thread's database connections that broke or outlived their age, but none with an open transaction.

    Those that stay open are checked when they are used next.

    Django's function of this name closes those with an open transaction, too: it expects to be called between requests
    only. A thread without open connections is skipped.
    """
    thread = threading.get_ident()
    if thread not in _connected:
        return
    found = connections.all(initialized_only=True)
    for connection in found:
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
            _check_when_used(connection)
    if all(connection.connection is None for connection in found):
        _connected.discard(thread)


def _check_when_used(connection: Any) -> None:
    """Let Django check a connection before its next use: the database may have been restarted."""
    # What CONN_HEALTH_CHECKS does for each request.
    connection.health_check_enabled = True
    connection.health_check_done = False


def _with_fresh_connections(call: Callable[..., T], *args: Any) -> T:
    close_old_connections()
    try:
        return call(*args)
    finally:
        close_old_connections()


def _with_kept_connections(call: Callable[..., T], *args: Any) -> T:
    """Run a call, and leave this thread's database connections open after it: the next call follows soon.

    A connection is closed `EXTRA_AGE` seconds after the end of its `CONN_MAX_AGE`. After an error, or after some idle
    time, it is checked at its next use.
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


async def run_sensitive(call: Callable[..., T], *args: Any) -> T:
    """Run sync code in Django's own thread: a transaction around `async_to_sync`, or a test's, is open there."""
    result: T = await SyncToAsync(_with_fresh_connections, thread_sensitive=True)(call, *args)
    return result


def _guarded(call: Callable[..., T], *args: Any) -> T:
    try:
        return call(*args)
    except StopIteration as error:
        # A future takes none: whoever waits for it would wait for ever.
        raise RuntimeError("a handler raised StopIteration") from error


async def _run(kind: str, size: int, prepared: Callable[..., T], call: Callable[..., T], *args: Any) -> T:
    call = partial(_guarded, call)
    if size == 0:
        return await run_sensitive(call, *args)
    # asgiref names a narrower type than it needs.
    runner = SyncToAsync(prepared, thread_sensitive=False, executor=cast(Any, _executor(kind, size)))
    result: T = await runner(call, *args)
    return result


class _Waiting(Generic[A, T]):
    """What an event loop waits for."""

    __slots__ = ("calls", "workers")

    def __init__(self) -> None:
        self.calls: deque[tuple[A, asyncio.Future[T]]] = deque()
        self.workers: set[asyncio.Task[None]] = set()


class Together(Generic[A, T]):
    """Runs a sync function for many callers: those that come while it runs for others share the next thread hop.

    Args:
        function: takes one argument; what it raises is raised to that caller.
        size: most calls in one hop.
        parallel: most hops at the same time, for each event loop.
    """

    def __init__(self, function: Callable[[A], T], *, size: int, parallel: int) -> None:
        self._function = function
        self._size = size
        self._parallel = parallel
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Waiting[A, T]] = weakref.WeakKeyDictionary()

    async def __call__(self, argument: A) -> T:
        """Return the function's result."""
        loop = asyncio.get_running_loop()
        waiting = self._loops.get(loop)
        if waiting is None:
            waiting = self._loops[loop] = _Waiting()
        future: asyncio.Future[T] = loop.create_future()
        waiting.calls.append((argument, future))
        if len(waiting.workers) < self._parallel:
            worker = loop.create_task(self._work(waiting))
            waiting.workers.add(worker)
            worker.add_done_callback(waiting.workers.discard)
        return await future

    async def _work(self, waiting: _Waiting[A, T]) -> None:
        while waiting.calls:
            calls = [waiting.calls.popleft() for _ in range(min(self._size, len(waiting.calls)))]
            try:
                outcomes = await run_handler(self._run, [argument for argument, _ in calls])
            except Exception as error:
                outcomes = [(None, error)] * len(calls)
            for (_, future), (result, cause) in zip(calls, outcomes, strict=True):
                if future.done():
                    continue  # its caller has gone
                if cause is not None:
                    future.set_exception(cause)
                else:
                    future.set_result(cast(T, result))

    def _run(self, arguments: list[A]) -> list[tuple[T | None, Exception | None]]:
        outcomes: list[tuple[T | None, Exception | None]] = []
        for argument in arguments:
            try:
                outcomes.append((_guarded(self._function, argument), None))
            except Exception as error:
                outcomes.append((None, error))
        return outcomes
