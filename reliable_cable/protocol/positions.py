"""Where a reader stands in a stream, and what it asks for when it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """A place in a stream: the offset of the last message that was seen, in the epoch in which it was given.

    Args:
        epoch: names one unbroken numbering of the stream; `""` where the stream does not exist yet.
        offset: 1 for the stream's first message, 0 before it.
    """

    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """What a client asks for in `subscribe` and `history` (PROTOCOL.md, 5 and 7).

    Args:
        since: seconds since 1970 by the client's clock, for the streams that `streams` lacks; None: not asked for.
        streams: the position last seen, by stream id.
    """

    since: float | None = None
    streams: Mapping[str, StreamPosition] = field(default_factory=dict)
