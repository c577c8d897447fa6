"""A process that writes runs: `python -m tests.storm_runs.writer sync|async`. A storm kills it.

It reads jobs as lines of JSON, and begins each immediately: it writes the run in a thread or in an asyncio task.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import django

from tests.storm_runs.content import Item, make_items


def write(job: dict[str, Any]) -> None:
    """Write a run. After an error of the database, try again, as a task queue does."""
    from django.db import OperationalError, connections

    from reliable_cable.runs.exceptions import RunError
    from reliable_cable.runs.writing import writing

    try:
        while True:
            with contextlib.suppress(OperationalError):
                with contextlib.suppress(RunError), writing(job["run"]) as out:
                    for item in _items(job, out.run.attempt):
                        out.write(item) if isinstance(item, str) else out.part(item)
                        time.sleep(job["pause"])
                return
    finally:
        connections.close_all()


async def awrite(job: dict[str, Any]) -> None:
    """Async version of `write`."""
    from django.db import OperationalError

    from reliable_cable.runs.exceptions import RunError
    from reliable_cable.runs.writing import awriting

    while True:
        with contextlib.suppress(OperationalError):
            with contextlib.suppress(RunError):
                async with awriting(job["run"]) as out:
                    for item in _items(job, out.run.attempt):
                        out.write(item) if isinstance(item, str) else out.part(item)
                        await asyncio.sleep(job["pause"])
            return


def _items(job: dict[str, Any], attempt: int) -> Iterator[Item]:
    """Yield the content of an attempt. The first attempt may fail after some of its content.

    A task may write another attempt than the one for which it was started.
    """
    from reliable_cable.runs.exceptions import RunFailed

    for number, item in enumerate(make_items(job["seed"] + attempt, job["tokens"])):
        if attempt == 1 and number == job["fails_at"]:
            raise RunFailed("The words have run out.")
        yield item


async def read_jobs() -> None:
    """Begin a task for each job."""
    async with asyncio.TaskGroup() as tasks:
        while line := await asyncio.to_thread(sys.stdin.readline):
            tasks.create_task(awrite(json.loads(line)))


if __name__ == "__main__":
    django.setup()
    if sys.argv[1] == "async":
        asyncio.run(read_jobs())
    else:
        for line in sys.stdin:
            threading.Thread(target=write, args=(json.loads(line),), daemon=True).start()
