"""The outbox of a reader of server-sent events: it sends frames as events, with ids. See Events: Ids."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from reliable_cable.protocol.constants import MessageType
from reliable_cable.protocol.event_ids import make_id
from reliable_cable.protocol.events import ACKNOWLEDGEMENTS, Event
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.servers.events import EventTransport

from .outbox import Outbox
from .subscribed import Subscribed


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class EventOutbox(Outbox):
    """An outbox that changes frames into events.

    Args:
        transport: the transport of the reader.
        subscriptions: returns the subscriptions of the connection.
    """

    transport: EventTransport
    subscriptions: Callable[[], Iterable[Subscribed]]

    def push(self, text: str, *, droppable: bool = False) -> bool:
        """Send a frame as an event, see `Outbox.push`. Frames that the reader is not to get are left out."""
        if self.closed:
            return True
        transport = self.transport
        event = transport.form.of(text)
        if event.stream_id or event.kind in ACKNOWLEDGEMENTS:
            event = self._number(event)
        if event.kind in (MessageType.CONFIRM_SUBSCRIPTION, MessageType.REJECT_SUBSCRIPTION):
            transport.answered(event.identifier, confirmed=event.kind == MessageType.CONFIRM_SUBSCRIPTION)
        return not event.shown or Outbox.push(self, event, droppable=droppable)

    def _number(self, event: Event) -> Event:
        """Return an event with the positions of the reader after this event."""
        resumed = self.transport.resumed
        positions: dict[str, StreamPosition] = {}
        for subscription in self.subscriptions():
            for stream_id, known in subscription.positions():
                if event.stream_id == stream_id:
                    known = StreamPosition(event.epoch, event.offset)
                position = known or resumed.get(stream_id)
                if position is not None:
                    positions[stream_id] = position
        # Until all subscriptions have been answered, the positions in the others are kept.
        former: Mapping[str, StreamPosition] = {} if self.transport.settled else resumed.by_digest
        if event.stream_id and len(positions) == 1 and not former:
            return event  # it has this id, and is encoded once for all readers
        return event.with_id(make_id(positions, former))

    def break_cycles(self) -> None:
        """Drop the references to the connection, which has ended."""
        Outbox.break_cycles(self)
        self.subscriptions = tuple
