"""The streams of a subscription, with the position of its client in each stream."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from reliable_cable.channel import Channel
from reliable_cable.hub.stream import LOST, HubStream
from reliable_cable.hub.subscriber import Subscriber, SubscriberState
from reliable_cable.identity import Identity, subscription_scopes
from reliable_cable.protocol import messages
from reliable_cable.protocol.constants import DisconnectReason, MessageType
from reliable_cable.protocol.control import SubscriptionRevocation
from reliable_cable.protocol.positions import PagePosition, StreamPosition, beginning_of, is_beginning
from reliable_cable.reply import StreamStart
from reliable_cable.stores.streams.base import NOWHERE

from .connection import Connection

#: The estimated size, in bytes, of a stream in a session record, without the stream's name.
STREAM_SIZE: Final = 128


def choose_presence_stream(streams: Iterable[tuple[str, bool]]) -> str | None:
    """Return the presence stream: the first stream that a handler has marked, or else the first stream.

    Args:
        streams: the name of each stream, and whether it is marked.

    Returns:
        The name of the stream. None if there are no streams.
    """
    # `min` returns the first of equal items.
    name, _ = min(streams, key=lambda stream: not stream[1], default=(None, False))
    return name


class RevokedError(Exception):
    """Raised if a subscription is revoked while it is being made."""


@dataclass(slots=True, eq=False, repr=False, kw_only=True)
class SubscribedStream(Subscriber):
    """A subscriber with its stream, and with the options that the handler gave when it started the stream.

    Args:
        start: the name and the options of the stream.
    """

    start: StreamStart
    #: The position at which the data of the client's web page were read. None after the first replay, or if the web
    #: page passed no position.
    page: PagePosition | None = None
    #: The time at which the request for the client's web page began, in seconds since 1970. None after the first
    #: replay, or if the web page passed no time.
    page_since: float | None = None
    #: Whether the channel gives snapshots of the stream.
    has_snapshots: bool = False
    #: Whether the client needs a snapshot before the stream goes live.
    needs_snapshot: bool = False
    #: The position from which a restore replays the stream if the client names none, because no message has reached the
    #: client.
    first: StreamPosition = NOWHERE
    #: The value that `first` gets when the client has read the latest notice of a loss. None if no such notice is
    #: pending.
    after_notice: StreamPosition | None = None
    #: The stream in the hub. It is set when the stream is open.
    stream: HubStream = field(init=False)

    @property
    def is_behind(self) -> bool:
        """Whether the subscriber needs entries from the store before it can go live."""
        return self.state is SubscriberState.CATCHING_UP and self.cursor != self.stream.position

    @property
    def starts_with_page(self) -> bool:
        """Whether the first replay starts at the position or the time of the client's web page."""
        return self.page is not None or self.page_since is not None

    @property
    def needs_replay(self) -> bool:
        """Whether the subscriber needs a replay before it can go live."""
        return self.is_behind or self.page_since is not None or self.needs_snapshot

    @property
    def begins_elsewhere(self) -> bool:
        """Whether a replay must first find the position to start from: that of the web page or of a snapshot."""
        return self.starts_with_page or self.needs_snapshot

    @property
    def named_position(self) -> StreamPosition:
        """The position of the last message that was sent to the client, in the form that clients send.

        If the stream has no message yet, the position names the store's data set, its lineage, in place of an epoch. If
        the lineage has changed when the client returns, messages may have been stored and lost while it was away.
        """
        return self._with_lineage(self.stream.position_of(self))

    @property
    def recorded_start(self) -> tuple[str, int]:
        """The epoch and offset of `first`, as written to session records. `resolve` translates them back."""
        first = self._with_lineage(self.first)
        return first.epoch, first.offset

    def _with_lineage(self, position: StreamPosition) -> StreamPosition:
        return beginning_of(self.stream.lineage) if position == NOWHERE else position

    def resolve(self, position: StreamPosition) -> StreamPosition:
        """Translate a position that was named or recorded earlier into a position in the stream.

        If the stream had no message when the position was named or recorded, and the store now has another data set
        (lineage), the result is `LOST`, because messages may have been stored and lost since then.
        """
        if not is_beginning(position):
            return position
        return NOWHERE if position == beginning_of(self.stream.lineage) else LOST

    def resume(self) -> None:
        """Start live delivery, if the subscriber was catching up."""
        if self.state is SubscriberState.CATCHING_UP:
            self.page = self.page_since = None
            self.stream.go_live(self)

    def suspend(self) -> None:
        """Stop live delivery, if the subscriber is live."""
        if self.state is SubscriberState.LIVE:
            self.stream.stop_live(self)

    def start_after_page(self, page: PagePosition) -> None:
        """Make the subscriber catch up from the position at which the data of the client's web page were read."""
        if self.resolve(page.named) == LOST:
            page = PagePosition(LOST.epoch, LOST.offset, page.stream)
        self.page = page
        self.start_at(page)

    def start_at(self, position: StreamPosition) -> None:
        """Set the position from which the subscriber catches up. If it is not catching up, its position is kept."""
        self.needs_snapshot = False
        if self.state is SubscriberState.CATCHING_UP:
            self.cursor = self.first = position

    def start_at_end(self) -> None:
        """Skip entries that cannot be replayed. The subscriber catches up from the stream's current position.

        `first` is not changed. If the client does not receive the notice of the loss, the next restore has to send the
        notice again.
        """
        self.needs_snapshot = False
        if self.state is SubscriberState.CATCHING_UP:
            self.cursor = self.stream.position


@dataclass(slots=True, eq=False, repr=False)
class SubscriptionStreams:
    """The streams of a subscription, with the position of its client in each stream.

    Args:
        connection: the connection to which the subscription belongs.
        identifier: the identifier, as the client wrote it.
        channel: the channel object, whose class the application defines.
    """

    connection: Connection
    identifier: str
    channel: Channel
    #: Whether the client was sent a confirmation on this connection.
    confirmed: bool = False
    #: Whether the client knows the subscription: it was confirmed, or its history was sent after a restore.
    known: bool = False
    streams: dict[str, SubscribedStream] = field(default_factory=dict)
    #: Whether a session record may contain the subscription. If the `subscribe` requests history, this is set to False
    #: until it is known where the history begins.
    restorable: bool = True
    #: The time at which the client left the session that was restored, by the session store's clock. None if there was
    #: no restore, or after the first replay.
    left_at: float | None = None
    #: The time at which `subscribed` was called, by the monotonic clock of `Engine.session_clock`.
    authorized_at: float = 0.0
    #: The value of `authorized` in the session that was restored. None means that the subscription was not restored.
    recorded_authorized: float | None = None
    #: Whether a revocation has ended the subscription, perhaps while a handler was running.
    revoked: bool = False
    #: How many bytes the subscription has reserved in the connection's account.
    reserved: int = 0

    def reserve(self, member: tuple[str, Any] | None) -> bool:
        """Reserve the bytes that the subscription takes in a session record.

        Args:
            member: the id and info of the subscription's member, or None if it has none.

        Returns:
            False if the account has too few bytes left, or if the connection would have too many streams for a reader
            of server-sent events.
        """
        limit = self.connection.transport.max_streams
        others = (each for name, each in self.connection.subscriptions.items() if name != self.identifier)
        if limit is not None and len(self.streams) + sum(len(list(each.positions())) for each in others) > limit:
            self.connection.log.warning("A reader of server-sent events has more than %d streams.", limit)
            return False
        size = len(self.identifier.encode()) + self.channel.state_size
        size += sum(len(name) + STREAM_SIZE for name in self.streams)
        if member is not None:
            size += len(json.dumps(member))
        if not self.connection.account.reserve(size - self.reserved):
            return False
        self.reserved = size
        return True

    @property
    def presence_stream(self) -> str | None:
        """The name of the presence stream, or None if there are no streams."""
        return choose_presence_stream((name, each.start.presence) for name, each in self.streams.items())

    @property
    def whisper_stream(self) -> str | None:
        """The name of the stream for the client's whispers, or None if the handler has chosen none."""
        return next((name for name, each in self.streams.items() if each.start.whisper), None)

    @property
    def authorized(self) -> float:
        """The time, by the session store's clock, at which the channel began to authorize the subscription."""
        if self.recorded_authorized is not None:
            return self.recorded_authorized
        return self.connection.hub.engine.session_clock.at(self.authorized_at)

    def scopes(self) -> list[Identity]:
        """Return the conditions by which a revocation can select the subscription: its channel and its streams."""
        return subscription_scopes(type(self.channel).name, self.streams)

    def revocation(self, authorized: float | None = None) -> SubscriptionRevocation | None:
        """Return a recent revocation that ends the subscription, or None if there is none.

        Args:
            authorized: the time, by the session store's clock, at which the channel began to authorize the
                subscription. None stands for the property `authorized`.
        """
        return self.connection.hub.control.recent.find(
            self.connection.identity, self.scopes, lambda: self.authorized if authorized is None else authorized
        )

    def positions(self) -> Iterator[tuple[str, StreamPosition | None]]:
        """Yield the stream id of each open stream, and the position of the last message that was sent to the client.

        The position is None until it is known where the requested history begins.
        """
        for subscribed in self.streams.values():
            if subscribed.stream_id is not None and subscribed.state is not SubscriberState.OPENING:
                yield subscribed.stream_id, subscribed.named_position if self.restorable else None

    def mark_confirmed(self) -> None:
        """Record that the client knows the subscription. From now on, the client may be sent presence events."""
        self.known = True
        for subscribed in self.streams.values():
            subscribed.confirmed = True

    def acknowledge(self, type_: MessageType) -> None:
        """Send an acknowledgement that names the subscription, such as `confirm_history`."""
        self.connection.outbox.push(messages.acknowledgement(type_, self.identifier))

    def report_loss(self) -> None:
        """Tell the client that messages were lost, in the way that its protocol offers (see Protocol: History)."""
        if self.connection.extended:
            self.reject_history()
        else:
            self.connection.close(DisconnectReason.SERVER_RESTART)

    def reject_history(self) -> None:
        """Send the notice of a loss. Once the client has read it, a restore starts after the lost messages."""
        self.acknowledge(MessageType.REJECT_HISTORY)
        for subscribed in self.streams.values():
            if subscribed.state is not SubscriberState.OPENING:
                subscribed.after_notice = subscribed.stream.position_of(subscribed)
        self.connection.notice_sent()

    def notice_read(self) -> None:
        """Record that the client has read the notice of a loss."""
        for subscribed in self.streams.values():
            if subscribed.after_notice is not None:
                subscribed.first, subscribed.after_notice = subscribed.after_notice, None
