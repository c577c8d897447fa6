"""Work that outlives the command or request that started it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any

#: The event loop itself keeps weak references only.
_tasks: set[asyncio.Task[None]] = set()


def start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `work` on the server's event loop, whatever becomes of the connection that asked for it.

    A project with a task queue (Celery, Django's tasks) would start it there: a broadcast works from anywhere.
    """
    # A context of its own: that of the request would tie its database work to a thread that ends with the request.
    task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task
