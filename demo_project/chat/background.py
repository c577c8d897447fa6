"""Background tasks that continue after the command or request that started them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from django.conf import settings

#: References to the running tasks. The event loop has only weak ones, so tasks could be garbage-collected.
_tasks: set[asyncio.Task[None]] = set()


async def start(work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    """Run an async function in the background, independently of the connection that started it.

    It runs in a Celery worker if there is a broker, and otherwise in the event loop of this server. Broadcasts work in
    both.

    Args:
        work: a function at the top level of a module.
        arguments: the arguments of the function, as JSON values.
    """
    if settings.CELERY_BROKER_URL:
        from .tasks import run  # imported late, because the demo needs no Celery without a broker

        await asyncio.to_thread(run.delay, f"{work.__module__}.{work.__qualname__}", *arguments)
        return
    # The task gets a new context. In the context of the request, its database calls would use a thread that ends with
    # the request.
    task = asyncio.get_running_loop().create_task(work(*arguments), context=contextvars.Context())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
