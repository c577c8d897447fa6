"""The environment variable CABLE_FEW, with which tests try fewer examples and fewer Redis programs."""

from __future__ import annotations

import os

#: Whether to try only a few examples. `.ci/run` sets CABLE_FEW where it repeats tests with other versions of Python and
#: of packages.
FEW = os.environ.get("CABLE_FEW") == "1"


def examples(number: int) -> int:
    """Return how many examples a test tries: `number`, or a tenth of it (at least 5) if only a few are wanted."""
    return max(number // 10, 5) if FEW else number
