"""`Account`, which counts and limits the bytes, the joins and the faults of one client."""

from typing import Final

from reliable_cable.concurrency.token_bucket import TokenBucket

#: The fraction of `MAX_PENDING_SIZE` that the subscriptions of a connection may use, including states and members.
LASTING_SHARE: Final = 0.25
#: Subscriptions may use this number of bytes for each of `MAX_SUBSCRIPTIONS`, even if `LASTING_SHARE` allows less.
SUBSCRIPTION_SIZE: Final = 512
#: How many joins per second a client may request.
JOIN_RATE: Final = 2.0
#: How many joins a client may request at once, in addition to one for each of `MAX_SUBSCRIPTIONS`.
JOIN_BURST: Final = 20

#: The maximum number of faults that a client may cause within `FAULTS_TIME`. A client that causes more is disconnected.
MAX_FAULTS: Final = 200
#: How long, in seconds, faults are added up before their count starts again at 0.
FAULTS_TIME: Final = 60.0


class Account:
    """Counts the bytes that the server stores in memory for one client, and the joins and faults of the client.

    A string counts one byte for each character, because counting the bytes of each string would take too long. So a
    string that is not ASCII may use up to four times as many bytes as are counted.

    A fault is a violation of the protocol or an error of a handler (see `connection.FRAME_FAULT`).

    Queued commands, queued frames and held messages share one limit. The identifiers, states and members of
    subscriptions share another limit, because they stay in memory for as long as the subscriptions exist.

    Args:
        limit: the maximum number of bytes that may be queued or held (the setting `MAX_PENDING_SIZE`).
        subscriptions: the maximum number of subscriptions (the setting `MAX_SUBSCRIPTIONS`).
    """

    __slots__ = (
        "_faults",
        "_faults_since",
        "_joins",
        "half",
        "lasting",
        "lasting_limit",
        "limit",
        "subscriptions",
        "used",
    )

    def __init__(self, limit: int, subscriptions: int = 1) -> None:
        self.limit = limit
        self.subscriptions = subscriptions
        #: If more bytes than this are queued or held, the server may stop reading commands (see `reading.Reading`).
        self.half = limit // 2
        #: How many bytes are queued or held.
        self.used = 0
        #: How many bytes the subscriptions use.
        self.lasting = 0
        #: The maximum number of bytes that the subscriptions may use.
        self.lasting_limit = max(int(limit * LASTING_SHARE), subscriptions * SUBSCRIPTION_SIZE)
        #: Limits the rate of joins. It is created at the first join, because most clients request none.
        self._joins: TokenBucket | None = None
        #: The number of faults since `_faults_since`.
        self._faults = 0
        #: The time at which the count of faults began, by the monotonic clock.
        self._faults_since = 0.0

    def reserve(self, size: int) -> bool:
        """Reserve bytes for a subscription. If the limit would be exceeded, reserve nothing and return False.

        Args:
            size: the number of bytes. A negative number releases reserved bytes.
        """
        if size > 0 and self.lasting + size > self.lasting_limit:
            return False
        self.lasting += size
        return True

    def may_join(self, now: float) -> bool:
        """Count a join that the client requests. Return False if the client requests joins too often.

        Args:
            now: the time in seconds, by a monotonic clock.
        """
        if self._joins is None:
            self._joins = TokenBucket(JOIN_RATE, JOIN_BURST + self.subscriptions)
        return self._joins.try_to_take(1, now)

    def may_fail(self, weight: int, now: float) -> bool:
        """Count faults of the client. Return False if there were more than `MAX_FAULTS` within `FAULTS_TIME`.

        Args:
            weight: the number of faults.
            now: the time in seconds, by a monotonic clock.
        """
        if now - self._faults_since > FAULTS_TIME:
            self._faults, self._faults_since = 0, now
        self._faults += weight
        return self._faults <= MAX_FAULTS
