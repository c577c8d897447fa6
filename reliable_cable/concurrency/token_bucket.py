"""`TokenBucket`, which limits a rate, but allows bursts."""


class TokenBucket:
    """A bucket that fills with tokens at a constant rate, up to a limit.

    Args:
        rate: the number of tokens that are added per second.
        burst: the maximum number of tokens in the bucket. The bucket is full at first.
    """

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._updated = 0.0

    def take(self, count: float, now: float) -> float:
        """Take tokens, even if the bucket contains fewer.

        Args:
            count: the number of tokens to take.
            now: the current time, in seconds, by a monotonic clock.

        Returns:
            The time, in seconds, until the missing tokens have been added; 0 if no tokens are missing.
        """
        self._fill(now)
        self._tokens -= count
        return max(-self._tokens / self._rate, 0)

    def try_to_take(self, count: float, now: float) -> bool:
        """Take tokens if the bucket has enough of them. Return whether it had enough."""
        self._fill(now)
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    def is_full(self, now: float) -> bool:
        """Return whether the bucket contains the maximum number of tokens."""
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        self._tokens = min(self._tokens + (now - self._updated) * self._rate, self._burst)
        self._updated = now
