"""Work that outlives the command or request that started it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

from django.conf import settings

#: The event loop itself keeps weak references only.
_tasks: set[asyncio.Task[None]] = set()


async def start(work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    """Run `work`, whatever becomes of the connection that asked for it; a broadcast works from anywhere.

    It runs in a Celery worker if there is a broker, else on this server's event loop.

    Args:
        work: a function of a module.
        arguments: its own; JSON values.
    """
    if settings.CELERY_BROKER_URL:
        from .tasks import run  # without a broker the demo needs no Celery

        await asyncio.to_thread(run.delay, f"{work.__module__}.{work.__qualname__}", *arguments)
        return
    # A context of its own: that of the request would tie its database work to a thread that ends with the request.
    task = asyncio.get_running_loop().create_task(work(*arguments), context=contextvars.Context())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
