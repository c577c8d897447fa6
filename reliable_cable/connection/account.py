"""The account of a connection: how many bytes its client makes the server keep."""

from typing import Final

#: The part of `MAX_PENDING_SIZE` that the subscriptions of a connection may fill, with their states and members.
LASTING_SHARE: Final = 0.25
#: The subscriptions may fill at least this number of bytes, times `MAX_SUBSCRIPTIONS`.
SUBSCRIPTION_SIZE: Final = 512


class Account:
    """Counts the bytes that one client makes the server keep.

    Queued commands, queued frames and held messages have one limit. The identifiers, states and members of
    subscriptions have another one, because they are kept for as long as the subscriptions exist.

    Args:
        limit: the most bytes that may be queued and held, the setting `MAX_PENDING_SIZE`.
        subscriptions: the most subscriptions.
    """

    __slots__ = ("half", "lasting", "lasting_limit", "limit", "used")

    def __init__(self, limit: int, subscriptions: int = 1) -> None:
        self.limit = limit
        #: While more bytes are used than this, no commands of the client are read.
        self.half = limit // 2
        #: How many bytes are queued and held.
        self.used = 0
        #: How many bytes the subscriptions fill, and how many they may fill.
        self.lasting = 0
        self.lasting_limit = max(int(limit * LASTING_SHARE), subscriptions * SUBSCRIPTION_SIZE)

    def reserve(self, size: int) -> bool:
        """Count a part of a subscription. Return False, and count nothing, if the subscriptions would fill too much.

        Args:
            size: its size in bytes. A negative size gives back what was reserved.
        """
        if size > 0 and self.lasting + size > self.lasting_limit:
            return False
        self.lasting += size
        return True
