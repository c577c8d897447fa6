"""The interface through which a connection uses its subscriptions."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from reliable_cable.identity import Identity
from reliable_cable.protocol.positions import StreamPosition


class Subscribed(Protocol):
    """The part of a subscription that its connection uses (see `subscription.Subscription`)."""

    #: Whether a session record may contain the subscription.
    restorable: bool

    @property
    def authorized(self) -> float:
        """The time, by the session store's clock, at which the channel began to authorize the subscription."""

    def scopes(self) -> Sequence[Identity]:
        """Return the conditions by which a revocation can select the subscription: its channel and its streams."""

    def record(self) -> dict[str, Any]:
        """Return the subscription's part of the session record, as JSON values."""

    def positions(self) -> Iterator[tuple[str, StreamPosition | None]]:
        """Yield the stream id and the position of each stream (see `SubscriptionStreams.positions`)."""

    def notice_read(self) -> None:
        """Record that the client has read all notices of losses."""
