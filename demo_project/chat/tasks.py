"""Celery's task: the work that `background` hands over."""

from __future__ import annotations

import asyncio
from typing import Any

from django.utils.module_loading import import_string

from demo_project.celery import app


@app.task  # type: ignore[untyped-decorator]  # Celery is untyped
def run(path: str, *arguments: Any) -> None:
    """Run an async function to its end, in a worker.

    Args:
        path: the function's, dotted.
        arguments: its own.
    """
    asyncio.run(import_string(path)(*arguments))
