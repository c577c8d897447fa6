"""Positions in streams, and the history requests that clients make with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The position of a message in a stream. A subscriber's position is that of the last message it received.

    Args:
        epoch: the id of one unbroken numbering of the stream; `""` if the stream does not exist yet.
        offset: the number of the message in this epoch, from 1; 0 is the position before the first message.
    """

    epoch: str
    offset: int

    def as_dict(self) -> dict[str, str | int]:
        """Return the position as a dict with `epoch` and `offset`, which can be encoded as JSON."""
        return {"epoch": self.epoch, "offset": self.offset}


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

    def merged(self, other: HistoryRequest) -> HistoryRequest:
        """Return a request for all messages that this or another request asks for.

        If the requests name two positions of a stream, or a position and a time, the stream gets a position that no
        stream has. The merged request is then rejected, because the store may have lost messages between the two.
        """
        times = [each.since for each in (self, other) if each.since is not None]
        streams = dict(self.streams)
        for name, position in other.streams.items():
            streams[name] = position if streams.get(name, position) == position else UNKNOWN_POSITION
        for one, two in ((self, other), (other, self)):
            if one.since is not None:
                streams |= dict.fromkeys(two.streams.keys() - one.streams.keys(), UNKNOWN_POSITION)
        return HistoryRequest(min(times, default=None), streams)


#: Precedes a lineage in a position. No epoch begins with it.
_LINEAGE: Final = "~"


def beginning_of(lineage: str) -> StreamPosition:
    """Return the position in a stream that has no message in a lineage; `""`: the lineage is unknown."""
    digest = hashlib.blake2b(lineage.encode(), digest_size=6).hexdigest()
    return StreamPosition(_LINEAGE + digest if lineage else "", 0)


def is_beginning(position: StreamPosition) -> bool:
    """Return whether a position is that of a stream without a message, in some lineage."""
    return position.epoch.startswith(_LINEAGE)


#: A position of no stream.
UNKNOWN_POSITION: Final = StreamPosition("?", 0)
