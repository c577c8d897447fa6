"""Positions in streams, and the history requests that clients make with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The position of a message in a stream. A subscriber's position is that of the last message it received.

    Args:
        epoch: the id of one unbroken numbering of the stream; `""` if the stream does not exist yet.
        offset: the number of the message in this epoch, from 1; 0 is the position before the first message.
    """

    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """The messages that a client requests with `subscribe` or `history`, see Protocol: History.

    Args:
        since: request messages from this time on, in seconds since 1970 by the client's clock. It applies to streams
            that `streams` does not list. None: no time was given.
        streams: the position of the last message that the client received, by stream id. Messages after it are
            requested.
    """

    since: float | None = None
    streams: Mapping[str, StreamPosition] = field(default_factory=dict)
