"""The reply of a handler: the changes and messages that it records. They are applied after the handler returns."""

from dataclasses import dataclass, field
from typing import Any

from .protocol.positions import PagePosition


@dataclass(frozen=True, slots=True)
class StreamStart:
    """The subscription streams from `name`, starting after the position `after`, at the time `since`, or else now.

    `since` is in seconds since 1970, by the clock of the stream store.
    """

    name: str
    whisper: bool = False
    presence: bool = False
    after: PagePosition | None = None
    since: float | None = None


@dataclass(frozen=True, slots=True)
class StreamStop:
    """The subscription stops streaming from `name`, or from all its streams if `name` is None."""

    name: str | None


@dataclass(frozen=True, slots=True)
class PresenceJoin:
    """The subscription joins presence as `id`."""

    id: str
    info: Any = None


@dataclass(frozen=True, slots=True)
class PresenceLeave:
    """The subscription leaves presence."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The content of a stream as one message. It stands for all messages of the stream up to a position.

    Args:
        position: the position, as `position()` returned it before the data were read; or one that was saved with them.
        data: the message, any value that can be encoded as JSON, unless it is falsy in JavaScript.
    """

    position: PagePosition
    data: Any


@dataclass(slots=True)
class Reply:
    """The changes and messages that a handler recorded, in order.

    They are applied after the handler returns. If it raises, they are dropped.
    """

    #: The messages to the client, as JSON.
    transmissions: list[str] = field(default_factory=list)
    streams: list[StreamStart | StreamStop] = field(default_factory=list)
    presence: list[PresenceJoin | PresenceLeave] = field(default_factory=list)
    rejected: bool = False
    #: Whether a check refused, so that the handler was not called.
    refused: bool = False
    #: Whether the handler changed the channel's state.
    changed: bool = False
