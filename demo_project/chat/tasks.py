"""Celery's task: the work that `background` hands over."""

from __future__ import annotations

import asyncio
from typing import Any

from django.utils.module_loading import import_string

from demo_project.celery import app

#: One event loop for all tasks of a worker process, so that connections to Redis are kept from one to the next.
_runner = asyncio.Runner()


@app.task  # type: ignore[untyped-decorator]  # Celery is untyped
def run(path: str, *arguments: Any) -> None:
    """Run an async function to its end, in a worker.

    Args:
        path: the function's, dotted.
        arguments: its own.
    """
    _runner.run(import_string(path)(*arguments))
