"""Formats the results of a storm as text."""

from __future__ import annotations

from collections import Counter

from tests.support.storms import aligned

from .presence import PRESENCE_KINDS
from .storm import Outcome
from .verdict import KINDS


def table(outcome: Outcome) -> str:
    """Return a table of all counts of a storm."""
    found: Counter[str] = Counter()
    for finding in outcome.findings:
        found[finding.kind] += finding.count
    rows: list[tuple[str, object]] = [
        ("broadcasts", outcome.broadcasts),
        ("  refused (BroadcastError)", outcome.refused),
        ("  uncertain, repeated", outcome.uncertain),
        ("deliveries", outcome.deliveries),
        ("connections", outcome.connects),
        ("  sessions restored", outcome.restores),
        ("  channels created again", outcome.recreated),
        ("faults", sum(outcome.faults.values())),
        *((f"  {kind}", count) for kind, count in sorted(outcome.faults.items())),
        ("epochs", outcome.epochs),
        ("losses signalled", outcome.signals),
        ("joins and leaves", outcome.changes),
        ("seconds to catch up", f"{outcome.catching_up:.1f}"),
        *((kind, found[kind]) for kind in (*KINDS, *PRESENCE_KINDS)),
        ("complaints", len(outcome.complaints)),
    ]
    return aligned(rows)


def violations(outcome: Outcome, most: int = 12) -> str:
    """Return the findings, at most `most` lines of each kind, and the command that repeats the storm."""
    of_kind: dict[str, list[str]] = {"complaint": outcome.complaints}
    for finding in outcome.findings:
        of_kind.setdefault(finding.kind, []).append(f"{finding.where}: {finding.what}")
    lines: list[str] = []
    for kind, texts in of_kind.items():
        lines += [f"{kind}: {text}" for text in texts[:most]]
        if len(texts) > most:
            lines.append(f"{kind}: {len(texts) - most} more")
    faults = [f"  {at:6.1f} s  {kind}" for at, kind in outcome.history]
    return "\n".join([*lines, "faults:", *faults, f"to repeat the storm: {outcome.plan.command}"])
