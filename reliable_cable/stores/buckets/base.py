"""The base class of named token buckets."""

from abc import ABC, abstractmethod

from reliable_cable.conf import RateLimit


class Buckets(ABC):
    """Named token buckets. A new bucket is full. An unused bucket is full again after the period of its limit."""

    @abstractmethod
    async def atake(self, name: str, limit: RateLimit) -> bool:
        """Take a token from a bucket if it has one. Return whether a token was taken.

        Args:
            name: the name of the bucket.
            limit: the maximum number of tokens in the bucket, and the period in which an empty bucket becomes full.

        Raises:
            StoreError: the buckets cannot be reached.
        """

    async def aclose(self) -> None:
        """Release the resources on the running event loop. The buckets may be used again."""
