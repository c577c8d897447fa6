"""Runs sync code in the thread of Django's ORM calls, which asgiref chooses for each task."""

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from asgiref.sync import AsyncToSync, SyncToAsync

T = TypeVar("T")


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
