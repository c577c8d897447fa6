"""The interface of token buckets with names."""

from abc import ABC, abstractmethod

from reliable_cable.conf import RateLimit


class Buckets(ABC):
    """Token buckets by name. A new bucket is full, and so is one that was not used for the period of its limit."""

    @abstractmethod
    async def atake(self, name: str, limit: RateLimit) -> bool:
        """Take a token from a bucket if it has one. Return whether it had.

        Args:
            name: the name of the bucket.
            limit: how many tokens the bucket holds, and in which time it fills.

        Raises:
            StoreError: the buckets cannot be reached.
        """

    async def aclose(self) -> None:
        """Release the resources on the running event loop. The buckets may be used again."""
