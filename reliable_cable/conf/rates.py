"""Rate limits, which are written as `"50/s"` or `"20/10s"` in the settings."""

import re
from dataclasses import dataclass
from typing import Final, Self

_TEXT: Final = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,4})?([smh])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The limit of a token bucket.

    Args:
        count: the maximum number of tokens in the bucket. The same number of tokens is added in each period.
        period: the period, in seconds.
    """

    count: int
    period: int

    @classmethod
    def parse(cls, text: object) -> Self:
        """Parse a string such as `"20/10s"`, and return the limit.

        Raises:
            ValueError: the value is not a valid rate limit.
        """
        found = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"{text!r} is not a rate")
        count, number, unit = found.groups()
        return cls(int(count), int(number or 1) * _SECONDS[unit])

    @property
    def rate(self) -> float:
        """The allowed average number of events per second."""
        return self.count / self.period

    def __str__(self) -> str:
        return f"{self.count} in {self.period} s"
