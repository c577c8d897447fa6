"""Celery tasks that broadcast or write runs. Celery has no types, so each decorator needs a `type: ignore`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from celery import shared_task

import reliable_cable
from tests.integration.project import calls, runs


@shared_task  # type: ignore[untyped-decorator]
def announce(stream: str, data: Any) -> None:
    """Broadcast outside of a transaction."""
    reliable_cable.broadcast(stream, data)


@shared_task  # type: ignore[untyped-decorator]
def announce_in_transaction(stream: str, data: Any, *, commit: bool) -> None:
    """Broadcast inside a transaction that is then committed or rolled back. Then broadcast to a second stream."""
    calls.broadcast_in_transaction(stream, data, commit=commit)
    reliable_cable.broadcast(f"{stream} done", {"done": commit})


@shared_task  # type: ignore[untyped-decorator]
def count_up(stream: str, first: int, last: int, writer: str) -> None:
    """Broadcast the numbers from `first` to `last`, each with a separate call and the id of this process."""
    for number in range(first, last + 1):
        reliable_cable.broadcast(stream, {"n": number, "writer": writer, "pid": os.getpid()})


@shared_task(ignore_result=False)  # type: ignore[untyped-decorator]
def perform(request: Mapping[str, Any]) -> dict[str, Any]:
    """Make a call (calls.py) in a worker, and store its result for the process that sent the task."""
    return calls.perform(request)


@shared_task  # type: ignore[untyped-decorator]
def write_run(run: str) -> None:
    """Write the words of a run's input, as `runs.write` does."""
    runs.write(run)
