"""The Celery task that runs an async function in a worker."""

from __future__ import annotations

import asyncio
from typing import Any

from django.utils.module_loading import import_string

from demo_project.celery import app

#: The event loop for all tasks of a worker process. The tasks share it, so that connections to Redis are reused.
_runner = asyncio.Runner()


@app.task  # type: ignore[untyped-decorator]  # Celery is untyped
def run(path: str, *arguments: Any) -> None:
    """Run an async function until it returns.

    Args:
        path: the dotted path of the function.
        arguments: the arguments of the function, as JSON values.
    """
    _runner.run(import_string(path)(*arguments))
