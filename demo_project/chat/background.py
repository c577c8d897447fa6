"""Starts background tasks, which continue after the command or request that started them has ended."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from django.conf import settings

#: The running tasks. The event loop has only weak references, so without these, tasks could be garbage-collected.
_tasks: set[asyncio.Task[None]] = set()


async def start(work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    """Run an async function in the background, independently of the connection that started it.

    The function runs in a Celery worker if `CELERY_BROKER_URL` is set, and otherwise in the event loop of this server.
    It can broadcast in both cases.

    Args:
        work: the async function, which must be at the top level of a module, so that a worker can import it.
        arguments: the arguments of the function, as JSON values.
    """
    if settings.CELERY_BROKER_URL:
        from .tasks import run  # imported here, because without a broker, the demo does not need Celery

        await asyncio.to_thread(run.delay, f"{work.__module__}.{work.__qualname__}", *arguments)
        return
    # The task gets a new context. In the context of the request, the database calls of the task would use a thread that
    # ends with the request.
    task = asyncio.get_running_loop().create_task(work(*arguments), context=contextvars.Context())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
