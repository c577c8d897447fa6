"""The thread of Django's ORM calls, which asgiref chooses for each task."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Final, TypeVar, cast

from asgiref.sync import AsyncToSync, SyncToAsync

from reliable_cable.conf import get_settings

from .database_connections import close_connections, close_old_connections, connected_threads

T = TypeVar("T")

#: The minimum time, in seconds, between two checks of the database connections that async handlers share.
REFRESH_INTERVAL = 1.0

_refreshed = 0.0


def _call(call: Callable[[], Any]) -> Any:
    return call()


_runner: Final[Any] = SyncToAsync(_call, thread_sensitive=True)


async def run_in_django_thread(call: Callable[[], T]) -> T:
    """Run a sync function in the thread of Django's ORM calls, so that it is part of transactions that are open there.

    A task that a request has started may outlive the request, for example if other requests also wait for its result.
    asgiref then refuses to use a thread that a sync middleware has blocked for the request. Later calls of the task run
    in the shared thread of the process.
    """
    begun = False

    def begin() -> T:
        nonlocal begun
        begun = True
        return call()

    try:
        return cast(T, await _runner(begin))
    except RuntimeError:
        if begun:
            raise
    AsyncToSync.executors.current = cast(Any, None)
    SyncToAsync.thread_sensitive_context.set(cast(Any, None))
    return cast(T, await _runner(begin))


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
        closing = executor.submit(close_connections)
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
    if connected_threads - {threading.get_ident()}:
        with contextlib.suppress(TimeoutError):
            SyncToAsync.single_thread_executor.submit(close_connections).result(timeout)
