"""Where sync code runs: one bounded pool for channel handlers, a small one for stores.

Nothing here survives a fork: pools are kept by process id, and made when first used.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial, wraps
from typing import Any, Generic, ParamSpec, TypeVar, cast

from asgiref.sync import SyncToAsync
from django.db import connections
from django.db.backends.signals import connection_created

from .conf import get_settings
from .exceptions import AsyncContextError

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

#: Threads that read and write a store's tables for the event loops of this process.
STORE_THREADS = 2

#: Seconds between checks of the connections that async handlers share.
REFRESH_INTERVAL = 1.0

_pools: dict[tuple[int, str, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()

#: Threads in which a database connection was opened, and was not found closed since.
_connected: set[int] = set()


def _remember_connection(**kwargs: Any) -> None:
    _connected.add(threading.get_ident())


connection_created.connect(_remember_connection)


def sync_only(twin: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function raise `AsyncContextError` in a thread with a running event loop, which it would block.

    The environment variable `DJANGO_ALLOW_ASYNC_UNSAFE` allows such calls, as it does for Django's own functions.

    Args:
        twin: what to await instead.
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


def _pool(kind: str, size: int) -> ThreadPoolExecutor:
    key = (os.getpid(), kind, size)
    with _lock:
        pool = _pools.get(key)
        if pool is None:
            pool = _pools[key] = ThreadPoolExecutor(size, thread_name_prefix=f"cable-{kind}")
        return pool


async def run_handler(call: Callable[..., T], *args: Any) -> T:
    """Run a sync channel handler; those of different connections run in parallel."""
    return await _run("handlers", get_settings().handler_threads, call, *args)


async def run_store(call: Callable[..., T], *args: Any) -> T:
    """Run a store's sync method, apart from the handlers, so that a slow handler delays no delivery."""
    size = STORE_THREADS if get_settings().handler_threads else 0
    return await _run("stores", size, call, *args)


def submit_store(call: Callable[[], T]) -> Future[T]:
    """Run a store's sync method in the store threads, from sync code: on a connection of its own."""

    return _pool("stores", STORE_THREADS).submit(partial(_with_fresh_connections, call))


_refreshed = 0.0


async def refresh_connections() -> None:
    """Close the database connections of async handlers that have become unusable; cheap when called often."""
    global _refreshed
    if not _connected:
        return
    now = time.monotonic()
    if now - _refreshed > REFRESH_INTERVAL:
        _refreshed = now
        await SyncToAsync(close_old_connections, thread_sensitive=True)()


def close_old_connections() -> None:
    """Close this thread's database connections that broke or outlived their age, but none with an open transaction.

    Django's function of this name closes those, too: it expects to be called between requests only. Where no connection
    was opened since, nothing is looked at.
    """
    thread = threading.get_ident()
    if thread not in _connected:
        return
    found = connections.all(initialized_only=True)
    for connection in found:
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
    if all(connection.connection is None for connection in found):
        _connected.discard(thread)


def _with_fresh_connections(call: Callable[..., T], *args: Any) -> T:
    close_old_connections()
    try:
        return call(*args)
    finally:
        close_old_connections()


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


async def _run(kind: str, size: int, call: Callable[..., T], *args: Any) -> T:
    call = partial(_guarded, call)
    if size == 0:
        return await run_sensitive(call, *args)
    runner = SyncToAsync(_with_fresh_connections, thread_sensitive=False, executor=_pool(kind, size))
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
