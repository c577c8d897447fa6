"""Limits of rates, as settings write them: `"50/s"`, `"20/10s"`."""

import re
from dataclasses import dataclass
from typing import Final, Self

_TEXT: Final = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,4})?([smh])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A limit of the rate of events, as a token bucket has it.

    Args:
        count: how many events may happen at once, and in each period.
        period: the period, in seconds.
    """

    count: int
    period: int

    @classmethod
    def parse(cls, text: object) -> Self:
        """Return the limit that a text such as `"20/10s"` describes.

        Raises:
            ValueError: the value is not such a text.
        """
        found = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"{text!r} is not a rate")
        count, number, unit = found.groups()
        return cls(int(count), int(number or 1) * _SECONDS[unit])

    @property
    def rate(self) -> float:
        """How many events per second are allowed on average."""
        return self.count / self.period

    def __str__(self) -> str:
        return f"{self.count} in {self.period} s"
