"""`Subscriber`, which receives one stream for a subscription, and has a position in the stream.

See Architecture: Delivery to a subscriber.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.streams.base import NOWHERE

#: The value of `Subscriber.at` while the subscriber is not live.
NOT_LIVE: Final = -1

#: The maximum number of transient messages that are held for a subscriber while it is catching up.
MAX_HELD: Final = 100

#: The key of a group of subscribers. It consists of their identifier, their stream id, and the class of their frames.
GroupKey = tuple[str, str | None, type[Frame]]


class SubscriberState(Enum):
    """The states of a subscriber. They decide which messages it receives, and from where."""

    #: The stream is being opened.
    OPENING = "opening"
    #: The subscriber receives entries from the store, after its cursor.
    CATCHING_UP = "catching up"
    #: The subscriber receives each message that the hub delivers.
    LIVE = "live"
    #: The subscriber receives nothing.
    CLOSED = "closed"


class SubscriberOutbox(Protocol):
    """The part of a connection's outbox that delivery uses (see `connection.outbox.Outbox`)."""

    form: type[Frame]
    ready: Callable[[bytes], None] | None

    @property
    def reading(self) -> asyncio.Lock:
        """The lock that is held while entries are read from the store and written to this connection."""

    def push(self, text: str, *, droppable: bool = False) -> bool:
        """Send a frame. Return False if it was dropped because too many characters are queued."""

    def push_all(self, frames: Sequence[str]) -> None:
        """Send several frames, in order."""

    def send_positions(self) -> None:
        """Tell a client without a session its positions, because messages that exclude the client were skipped."""

    def can_hold(self, size: int) -> bool:
        """Return whether a message of `size` characters may be held."""

    def hold(self, size: int) -> None:
        """Change the total size of the messages that subscribers hold until they are live.

        Args:
            size: the size of a message that is now held, in characters; negative if it is no longer held.
        """

    def failed(self) -> None:
        """Stop sending, because the socket is closed."""

    async def drained(self) -> None:
        """Wait until no frames are queued."""


class SubscriberOwner(Protocol):
    """The part of a subscription that its subscribers use."""

    def fell_behind(self) -> None:
        """Catch up from the store, because messages could not be sent to a live subscriber."""

    def messages_lost(self) -> None:
        """Tell the client that messages of a live subscriber were lost."""


@dataclass(slots=True, eq=False, repr=False)
class Subscriber:
    """Receives one of the streams of a subscription. A subscription has a subscriber for each of its streams.

    Args:
        owner: the subscription.
        outbox: the outbox of the connection.
        identifier: the identifier of the subscription.
        stream_id: the stream id of the stream; None for a base client, which receives no positions.
        sids: the session ids by which a broadcast can exclude this connection.
    """

    owner: SubscriberOwner
    outbox: SubscriberOutbox
    identifier: str
    stream_id: str | None
    sids: Collection[str]
    #: Whether the client receives the join and leave events of this stream.
    presence: bool = False
    #: Whether the subscription was confirmed, so that presence events and transient messages can be sent.
    confirmed: bool = False
    state: SubscriberState = SubscriberState.OPENING
    #: The serial (see `HubStream`) of the last stored message that was written to the outbox or that excluded the
    #: connection. It is `NOT_LIVE` unless the subscriber is live.
    at: int = NOT_LIVE
    #: The position after which entries are read from the store. It is only used while the subscriber is catching up.
    cursor: StreamPosition = NOWHERE
    #: The transient messages that have arrived while the subscriber was catching up.
    _held: list[str] | None = None

    def catch_up_from(self, cursor: StreamPosition) -> None:
        """Stop live delivery, and set the cursor after which the subscriber needs entries from the store."""
        self.at = NOT_LIVE
        self.cursor = cursor
        self.state = SubscriberState.CATCHING_UP

    def fall_behind(self, cursor: StreamPosition) -> None:
        """Stop live delivery, because the socket or the queue of the stream is full."""
        self.catch_up_from(cursor)
        self.owner.fell_behind()

    def go_live(self, serial: int) -> None:
        """Begin live delivery, and send the held messages.

        Args:
            serial: the serial of the last stored message that the subscriber has received.
        """
        self.at = serial
        self.state = SubscriberState.LIVE
        for frame in self._release_held():
            self.outbox.push(frame)

    def close(self) -> None:
        """Stop all delivery, and drop the held messages."""
        self.at = NOT_LIVE
        self.state = SubscriberState.CLOSED
        self._release_held()

    def hold(self, frame: Frame) -> None:
        """Hold a transient message until the subscriber is live. Drop it if too many messages or bytes are held."""
        if self.state is SubscriberState.CLOSED or not self.outbox.can_hold(len(frame)):
            return
        if self._held is None:
            self._held = []
        if len(self._held) < MAX_HELD:
            self._held.append(frame)
            self.outbox.hold(len(frame))

    def _release_held(self) -> Sequence[str]:
        if self._held is None:
            return ()
        held, self._held = self._held, None
        self.outbox.hold(-sum(map(len, held)))
        return held


def group_key(subscriber: Subscriber) -> GroupKey:
    """Return the key of the group that a subscriber belongs to."""
    return subscriber.identifier, subscriber.stream_id, subscriber.outbox.form


@dataclass(slots=True, eq=False, repr=False)
class SubscriberGroup:
    """The subscribers of a stream that receive the same frame for a message.

    Args:
        identifier: the identifier of the subscriptions.
        stream_id: the stream id of the stream; None for base clients.
        form: the class of frames that the clients can read.
    """

    identifier: str
    stream_id: str | None
    form: type[Frame] = Frame
    subscribers: dict[Subscriber, None] = field(default_factory=dict)
    _epoch: str = ""
    _encode: Callable[[int, str], Frame] | None = None

    def encode(self, epoch: str, offset: int, data: str) -> Frame:
        """Encode a stored message as a frame."""
        if self.stream_id is None:
            return self.encode_transient(data)
        if self._encode is None or epoch != self._epoch:
            self._encode = self.form.broadcasts(self.identifier, self.stream_id, epoch)
            self._epoch = epoch
        return self._encode(offset, data)

    def encode_transient(self, data: str) -> Frame:
        """Encode a message without its position as a frame."""
        return self.form.transmission(self.identifier, data)

    def encode_presence(self, message: str) -> Frame:
        """Encode a presence message as a frame."""
        return self.form.presence_event(self.identifier, message)
