"""Where sync code runs: one bounded pool for channel handlers, a small one for stores.

Nothing here survives a fork: pools are kept by process id, and made when first used.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from channels.db import DatabaseSyncToAsync, aclose_old_connections
from django.db import close_old_connections

from .conf import get_settings

T = TypeVar("T")

#: Threads that read and write a store's tables for the event loops of this process.
STORE_THREADS = 2

#: Seconds between checks of the connections that async handlers share.
REFRESH_INTERVAL = 1.0

_pools: dict[tuple[int, str, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()


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

    def run() -> T:
        close_old_connections()
        try:
            return call()
        finally:
            close_old_connections()

    return _pool("stores", STORE_THREADS).submit(run)


_refreshed = 0.0


async def refresh_connections() -> None:
    """Close the database connections of async handlers that have become unusable; cheap when called often."""
    global _refreshed
    now = time.monotonic()
    if now - _refreshed > REFRESH_INTERVAL:
        _refreshed = now
        await aclose_old_connections()


async def _run(kind: str, size: int, call: Callable[..., T], *args: Any) -> T:
    if size == 0:
        # Django's own thread: it shares the open transaction of a test.
        result: T = await DatabaseSyncToAsync(call, thread_sensitive=True)(*args)
    else:
        result = await DatabaseSyncToAsync(call, thread_sensitive=False, executor=_pool(kind, size))(*args)
    return result
