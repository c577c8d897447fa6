"""The account of a connection: how many bytes its client makes the server keep."""

from typing import Final

#: The part of `MAX_PENDING_SIZE` that may be kept without an end. It is more if the subscriptions need it.
LASTING_SHARE: Final = 0.25
#: How many bytes each of the subscriptions that a client may have can keep, at least.
SUBSCRIPTION_SIZE: Final = 512


class Account:
    """Counts the bytes that one client makes the server keep.

    Queued commands, queued frames and held messages are kept until they are handled or sent. The identifier, the state
    and the member of a subscription are kept without an end.

    Args:
        limit: the most bytes that may be queued and held, the setting `MAX_PENDING_SIZE`.
        subscriptions: the most subscriptions.
    """

    __slots__ = ("half", "lasting", "lasting_limit", "limit", "used")

    def __init__(self, limit: int, subscriptions: int = 1) -> None:
        self.limit = limit
        #: While more is used than this, no commands of the client are read.
        self.half = limit // 2
        #: How many bytes are queued and held.
        self.used = 0
        #: How many bytes are kept without an end, and how many may be.
        self.lasting = 0
        self.lasting_limit = max(int(limit * LASTING_SHARE), subscriptions * SUBSCRIPTION_SIZE)

    def reserve(self, size: int) -> bool:
        """Count something that is kept without an end. Return False, and count nothing, if it would be too much.

        Args:
            size: its size in bytes. A negative size gives back what was reserved.
        """
        if size > 0 and self.lasting + size > self.lasting_limit:
            return False
        self.lasting += size
        return True
