"""Formats the results of a storm of runs as text."""

from __future__ import annotations

from tests.support.storms import aligned

from .storm import Outcome


def table(outcome: Outcome) -> str:
    """Return a table of all counts of a storm."""
    rows = [
        ("runs", outcome.plan.runs),
        *sorted(outcome.counts.items()),
        ("seconds", round(outcome.seconds)),
        ("findings", len(outcome.findings)),
        ("complaints", len(outcome.complaints)),
    ]
    return aligned(rows)


def violations(outcome: Outcome, most: int = 15) -> str:
    """Return the findings and complaints, at most `most` of each, and the command that repeats the storm."""
    lines = []
    for name, texts in (("finding", outcome.findings), ("complaint", outcome.complaints)):
        lines += [f"{name}: {text[:800]}" for text in texts[:most]]
        if len(texts) > most:
            lines.append(f"{name}s: {len(texts) - most} more")
    return "\n".join([*lines, f"to repeat the storm: {outcome.plan.command}"])
