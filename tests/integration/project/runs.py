"""Runs that Celery tasks write."""

from __future__ import annotations

import os
import time
from typing import Any

from django.db import transaction

from reliable_cable.runs.access import RunPermissions
from reliable_cable.runs.models import Run
from reliable_cable.runs.writing import writing


class Everyone(RunPermissions):
    """Lets everyone read and stop every run, because the clients of the tests are anonymous."""

    def may_read(self, user: Any, run: Run) -> bool:
        """Return True."""
        return True


def write(run: str) -> None:
    """Write the words of a run's input, one after another. The first part names this process."""
    with writing(run) as out:
        out.data("pid", os.getpid())
        for word in out.run.input["words"]:
            out.write(word)
            time.sleep(out.run.input["pause"])


def start_run(words: list[str], pause: float) -> str:
    """Start a run, and enqueue its task after the commit. Return its id."""
    with transaction.atomic():
        run = Run.objects.start(input={"words": words, "pause": pause})
        transaction.on_commit(lambda: _enqueue(str(run.pk)))
    return str(run.pk)


def retry_run(run: str) -> None:
    """Start another attempt of a run that has ended."""
    Run.objects.retry(run)
    _enqueue(run)


def read_run(run: str) -> dict[str, Any]:
    """Return the row of a run."""
    return dict(Run.objects.filter(pk=run).values("status", "text", "attempt", "error").get())


def _enqueue(run: str) -> None:
    from tests.integration.project.celery import app  # imported late, because most processes need no Celery

    app.send_task("tests.integration.project.tasks.write_run", [run])
