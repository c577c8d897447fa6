"""The account of a connection: how many bytes its client makes the server keep."""

from typing import Final

#: The part of the limit that things without an end may fill: subscriptions, their state, and members.
LASTING_SHARE: Final = 0.25


class Account:
    """Counts the bytes that one client makes the server keep, whatever they are.

    These are queued commands, requests for history, queued frames, held messages, subscriptions, states and members.

    Args:
        limit: the most bytes, the setting `MAX_PENDING_SIZE`.
    """

    __slots__ = ("half", "lasting", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: While more is kept than this, no commands of the client are read.
        self.half = limit // 2
        #: How many bytes are kept.
        self.used = 0
        #: How many of them are kept by things without an end.
        self.lasting = 0

    def reserve(self, size: int) -> bool:
        """Count something without an end. Return False, and count nothing, if `LASTING_SHARE` would be exceeded.

        Args:
            size: its size in bytes. A negative size gives back what was reserved.
        """
        if size > 0 and self.lasting + size > self.limit * LASTING_SHARE:
            return False
        self.lasting += size
        self.used += size
        return True
