"""Runs that tests write step by step, in the process that handles the calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from reliable_cable.runs.exceptions import RunFailed, RunStopped
from reliable_cable.runs.models import Run
from reliable_cable.runs.pump import pump
from reliable_cable.runs.writing import Writer, writing

#: The open `writing` blocks and their writers, by the id of the run.
_open: dict[str, tuple[ExitStack, Writer]] = {}
#: The `writing` blocks of abandoned runs. They are kept here, because Python ends a block when it is garbage-collected.
_abandoned: list[ExitStack] = []


def make_run() -> str:
    """Create a queued run, and return its id."""
    return str(Run.objects.start().pk)


def requeue_run(run: str) -> None:
    """Queue a run again after it has ended."""
    Run.objects.retry(run)


def begin_run(run: str) -> None:
    """Begin to write a queued run."""
    block = ExitStack()
    _open[run] = block, block.enter_context(writing(run))


def add_to_run(run: str, items: Sequence[str | Mapping[str, Any]]) -> None:
    """Add texts and parts to a run."""
    _, out = _open[run]
    for item in items:
        if isinstance(item, str):
            out.write(item)
        else:
            out.part(item)


def end_run(run: str, error: str = "") -> None:
    """Complete a run, or fail it with an error message; if it was stopped, end it as stopped."""
    block, out = _open.pop(run)
    with suppress(RunFailed), block:
        if out.stopped:
            raise RunStopped
        if error:
            raise RunFailed(error)


def abandon_run(run: str) -> None:
    """Stop writing a run without ending it, as if the process had been killed."""
    block, out = _open.pop(run)
    _abandoned.append(block)
    pump().remove(out._attempt)


def is_run_stopped(run: str) -> bool:
    """Return whether the writer of a run knows that the run was stopped."""
    return _open[run][1].stopped


def delete_run(run: str) -> None:
    """Delete the row of a run."""
    Run.objects.filter(pk=run).delete()
