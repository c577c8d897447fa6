"""A subscriber without a subscription, for tests of the hub."""

from __future__ import annotations

from collections.abc import Callable, Collection

from reliable_cable.hub.hub import Hub
from reliable_cable.hub.stream import HubStream
from reliable_cable.hub.subscriber import Subscriber, SubscriberOutbox, SubscriberState


class _Owner:
    """Takes the place of the subscription that owns a subscriber."""

    def __init__(self, lost: Callable[[], object]) -> None:
        self._lost = lost

    def fell_behind(self) -> None:
        """Do nothing: the test decides when the subscriber catches up."""

    def messages_lost(self) -> None:
        """Call the function that the test passed."""
        self._lost()


class LoneSubscriber(Subscriber):
    """A subscriber whose live delivery a test starts and stops.

    Args:
        outbox: the outbox of the connection.
        identifier: the identifier of the subscription.
        stream_id: the stream id that the client knows.
        sids: the session ids of the connection.
        lost: called in place of the notice of a loss to the client.
    """

    stream: HubStream

    def __init__(
        self,
        outbox: SubscriberOutbox,
        identifier: str,
        stream_id: str | None,
        sids: Collection[str],
        lost: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(_Owner(lost), outbox, identifier, stream_id, sids)

    async def join(self, hub: Hub, name: str) -> None:
        """Subscribe to a stream."""
        self.stream = await hub.subscribe(name, self)

    def leave(self, hub: Hub) -> None:
        """Unsubscribe."""
        hub.unsubscribe(self.stream, self)

    def resume(self) -> None:
        """Start live delivery if the subscriber is catching up."""
        if self.state is SubscriberState.CATCHING_UP:
            self.stream.go_live(self)

    def suspend(self) -> None:
        """Stop live delivery."""
        if self.state is SubscriberState.LIVE:
            self.stream.stop_live(self)

    @property
    def is_behind(self) -> bool:
        """Whether the subscriber is catching up and needs entries from the store."""
        return self.state is SubscriberState.CATCHING_UP and self.cursor != self.stream.position

    @property
    def closed(self) -> bool:
        """Whether the subscriber has left the stream."""
        return self.state is SubscriberState.CLOSED
