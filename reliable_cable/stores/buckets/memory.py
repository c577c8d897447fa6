"""Token buckets in the memory of one process."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from reliable_cable.concurrency.token_bucket import TokenBucket
from reliable_cable.conf import RateLimit

from .base import Buckets

#: The maximum number of buckets. A bucket takes about 300 bytes of memory.
MAX_BUCKETS: Final = 10_000


class MemoryBuckets(Buckets):
    """Stores buckets in the memory of this process.

    Each call of `atake` removes full buckets, the least recently used one first, until it finds a bucket that is not
    full. If more than `MAX_BUCKETS` buckets remain, the least recently used ones are removed, too. The removal of a
    full bucket changes nothing, because a new bucket is full.

    Args:
        clock: a function that returns the time of a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: The buckets, by name. The most recently used bucket is the last.
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    async def atake(self, name: str, limit: RateLimit) -> bool:
        """Take a token from a bucket if it has one. Return whether a token was taken."""
        now = self._clock()
        bucket = self._buckets.setdefault(name, TokenBucket(limit.rate, limit.count))
        self._buckets.move_to_end(name)
        taken = bucket.try_to_take(1, now)
        while len(self._buckets) > MAX_BUCKETS or next(iter(self._buckets.values())).is_full(now):
            self._buckets.popitem(last=False)
        return taken
