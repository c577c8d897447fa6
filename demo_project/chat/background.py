"""Starts background tasks, which continue after the command or request that started them has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import connections


def start(work: Callable[..., None], *arguments: Any) -> None:
    """Run a function in a Celery worker if `CELERY_BROKER_URL` is set, and otherwise in a thread of this process.

    Args:
        work: the function, which must be at the top level of a module, so that a worker can import it.
        arguments: the arguments of the function, as JSON values.
    """
    if settings.CELERY_BROKER_URL:
        from .tasks import run  # imported here, because without a broker, the demo does not need Celery

        run.delay(f"{work.__module__}.{work.__qualname__}", *arguments)
    else:
        threading.Thread(target=_run, args=(work, *arguments), daemon=True).start()


def _run(work: Callable[..., None], *arguments: Any) -> None:
    try:
        work(*arguments)
    finally:
        connections.close_all()
