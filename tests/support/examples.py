"""How many examples property tests and random walks try."""

from __future__ import annotations

import os

#: Whether to try only a few examples. `.ci/run` sets this where it repeats tests with other versions.
FEW = os.environ.get("CABLE_FEW_EXAMPLES") == "1"


def examples(number: int) -> int:
    """Return how many examples a test tries: a number, or a tenth of it if only a few are wanted."""
    return max(number // 10, 5) if FEW else number
