"""The results of a storm, and the end of the commands that run one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

PlanT = TypeVar("PlanT")
FindingT = TypeVar("FindingT")
OutcomeT = TypeVar("OutcomeT", bound="StormOutcome[Any, Any]")


@dataclass(slots=True)
class StormOutcome(Generic[PlanT, FindingT]):
    """The results of a storm."""

    plan: PlanT
    folder: Path
    #: Broken promises.
    findings: list[FindingT] = field(default_factory=list)
    #: Events that should not happen, such as processes that end by themselves.
    complaints: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not self.findings and not self.complaints


def aligned(rows: Sequence[tuple[str, object]]) -> str:
    """Return rows of names and counts as a table in text."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value:>8}" for name, value in rows)


def show(text: str) -> None:
    """Print a text at once."""
    print(text, flush=True)  # noqa: T201 - the output of a command


def conclude(
    outcome: OutcomeT, table: Callable[[OutcomeT], str], violations: Callable[[OutcomeT], str], *, keep: bool
) -> int:
    """Print the results of a storm, and return the exit code of its command: 1 if a promise was broken.

    Args:
        outcome: the results.
        table: returns all counts as text.
        violations: returns the broken promises as text.
        keep: whether to keep the databases and the logs even if no promise was broken.
    """
    show(table(outcome))
    if not outcome.good:
        show(violations(outcome))
        show(f"logs: {outcome.folder}")
        return 1
    if not keep:
        shutil.rmtree(outcome.folder)
    return 0
