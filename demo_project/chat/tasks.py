"""The Celery task that runs a function in a worker."""

from __future__ import annotations

from typing import Any

from django.utils.module_loading import import_string

from demo_project.celery import app


@app.task  # type: ignore[untyped-decorator]  # Celery is untyped
def run(path: str, *arguments: Any) -> None:
    """Run a function.

    Args:
        path: the dotted path of the function.
        arguments: the arguments of the function, as JSON values.
    """
    import_string(path)(*arguments)
