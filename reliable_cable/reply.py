"""The reply of a handler, which records changes and messages. They are applied after the handler has returned."""

from dataclasses import dataclass, field
from typing import Any

from .protocol.positions import PagePosition


@dataclass(frozen=True, slots=True)
class StreamStart:
    """A request to start a stream.

    Args:
        name: the name of the stream, with its namespace.
        whisper: whether the client's whispers are sent to this stream.
        presence: whether this is the presence stream of the subscription.
        after: send the messages after this position.
        since: without `after`, send the messages since this time, in seconds since 1970 by the stream store's clock. If
            `after` and `since` are None, only new messages are sent.
    """

    name: str
    whisper: bool = False
    presence: bool = False
    after: PagePosition | None = None
    since: float | None = None


@dataclass(frozen=True, slots=True)
class StreamStop:
    """A request to stop the stream with this name. If the name is None, all streams of the subscription are stopped."""

    name: str | None


@dataclass(frozen=True, slots=True)
class PresenceJoin:
    """A request to join presence as the member with this id."""

    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class PresenceLeave:
    """A request to leave presence."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a stream as one message. It stands for all messages of the stream up to a position.

    Args:
        position: the position that `position()` returned before the data were read, or a position that was saved with
            the data.
        data: the message, any value that can be encoded as JSON, unless it is falsy in JavaScript.
    """

    position: PagePosition
    data: Any


@dataclass(slots=True)
class Reply:
    """The changes and messages that a handler has recorded, in order. If the handler fails, the reply is dropped."""

    #: The messages to the client, as JSON texts.
    transmissions: list[str] = field(default_factory=list)
    streams: list[StreamStart | StreamStop] = field(default_factory=list)
    presence: list[PresenceJoin | PresenceLeave] = field(default_factory=list)
    rejected: bool = False
    #: Whether `before_subscribe` or `before_action` refused the command, so that its handler was not called.
    refused: bool = False
    #: Whether the handler has changed the channel's state.
    changed: bool = False
