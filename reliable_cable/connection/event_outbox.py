"""The outbox of a reader of server-sent events. It sends frames as events with ids. See Events: Ids."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from reliable_cable.protocol.constants import MessageType
from reliable_cable.protocol.event_ids import ReaderPositions
from reliable_cable.protocol.events import ACKNOWLEDGEMENTS, Event
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.servers.events import EventTransport

from .outbox import Outbox
from .subscribed import Subscribed


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class EventOutbox(Outbox):
    """An outbox that sends frames as server-sent events.

    Args:
        transport: the transport that sends the events to the reader.
        subscriptions: a function that returns the subscriptions of the connection.
    """

    transport: EventTransport
    subscriptions: Callable[[], Iterable[Subscribed]]
    #: The reader's positions after the last event. None means that they must be read from the subscriptions.
    _positions: ReaderPositions | None = None

    def push(self, text: str, *, droppable: bool = False) -> bool:
        """Send a frame as an event (see `Outbox.push`). Leave out a frame whose event would be empty."""
        if self.closed:
            return True
        transport = self.transport
        event = transport.form.of(text)
        if event.stream_id:
            event = self._number(event)
        elif event.kind in ACKNOWLEDGEMENTS:
            event = event.with_id(self._read_positions().make_id())
        if event.kind in (MessageType.CONFIRM_SUBSCRIPTION, MessageType.REJECT_SUBSCRIPTION):
            transport.answered(event.identifier, confirmed=event.kind == MessageType.CONFIRM_SUBSCRIPTION)
            self._positions = None
        if not event.shown or Outbox.push(self, event, droppable=droppable):
            return True
        self._positions = None  # the reader has not received the event
        return False

    def send_positions(self) -> None:
        """Send an event id without data. Call this after messages that exclude the reader were left out.

        After a reconnect, the reader has another session id, so these messages would no longer exclude it. The event id
        shows that they come before the reader's position, so the server does not send them.
        """
        self.push(self.transport.form.make("").with_id(self._read_positions().make_id()))

    def _number(self, event: Event) -> Event:
        """Return a broadcast with an id that contains the reader's positions after the broadcast."""
        positions = self._positions
        if positions is None or event.stream_id not in positions:
            positions = self._read_positions()
        positions.move(event.stream_id, StreamPosition(event.epoch, event.offset))
        # For a reader with one stream, the event already has the right id, and is encoded once for all such readers.
        return event if len(positions) == 1 else event.with_id(positions.make_id())

    def _read_positions(self) -> ReaderPositions:
        """Return the positions of the reader according to its subscriptions."""
        resumed = self.transport.resumed
        found: dict[str, StreamPosition] = {}
        for subscription in self.subscriptions():
            for stream_id, known in subscription.positions():
                position = known or resumed.get(stream_id)
                if position is not None:
                    found[stream_id] = position
        # Until each `subscribe` is answered, the id also has the former positions, for streams that are not open yet.
        former: Mapping[str, StreamPosition] = {} if self.transport.settled else resumed.by_digest
        self._positions = ReaderPositions(found, former)
        return self._positions

    def break_cycles(self) -> None:
        """Drop the references to the connection, which has ended."""
        Outbox.break_cycles(self)
        self.subscriptions = tuple
