"""A stream of a subscription."""

from __future__ import annotations

from dataclasses import dataclass, field

from reliable_cable.hub.stream import HubStream
from reliable_cable.hub.subscriber import Subscriber, SubscriberState
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.reply import StreamStart
from reliable_cable.stores.streams.base import NOWHERE


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class SubscribedStream(Subscriber):
    """A subscriber, with its stream and the reason why it was started.

    Args:
        start: what the handler asked for.
    """

    start: StreamStart
    #: The position from which a restore sends entries if the client received none.
    first: StreamPosition = NOWHERE
    #: The stream; set when it is open.
    stream: HubStream = field(init=False)

    @property
    def is_behind(self) -> bool:
        """Whether it needs entries from the store before it can go live."""
        return self.state is SubscriberState.CATCHING_UP and self.stream.is_behind(self)

    def resume(self) -> None:
        """Start live delivery, if it is caught up."""
        if self.state is SubscriberState.CATCHING_UP:
            self.stream.go_live(self)

    def suspend(self) -> None:
        """Stop live delivery, if it is live."""
        if self.state is SubscriberState.LIVE:
            self.stream.stop_live(self)

    def start_at(self, position: StreamPosition) -> None:
        """Catch up from a position that the client named or had in its session."""
        if self.state is SubscriberState.CATCHING_UP:
            self.cursor = self.first = position

    def start_at_end(self) -> None:
        """Skip entries that cannot be replayed: catch up from the stream's present position."""
        if self.state is SubscriberState.CATCHING_UP and self.stream.position is not None:
            self.cursor = self.first = self.stream.position
