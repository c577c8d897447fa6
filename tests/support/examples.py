"""How many examples property tests, random walks and concurrency tests try, and how many Redis programs they use."""

from __future__ import annotations

import os

#: Whether to try only a few examples. `.ci/run` sets CABLE_FEW where it repeats tests with other versions of Python and
#: of packages.
FEW = os.environ.get("CABLE_FEW") == "1"


def examples(number: int) -> int:
    """Return how many examples a test tries: `number`, or a tenth of it (at least 5) if only a few are wanted."""
    return max(number // 10, 5) if FEW else number
