"""How many examples property tests try."""

from __future__ import annotations

import hypothesis

#: The default of hypothesis. Profiles with fewer examples reduce those of each test in proportion.
USUAL = 100


def examples(count: int) -> int:
    """Return how many examples a property test tries in the current profile of hypothesis.

    Args:
        count: the number of examples in a profile that tries 100 by default.
    """
    usual = hypothesis.settings().max_examples
    return max(1, count * usual // USUAL)
