"""Positions in streams, and the history requests of clients, which contain positions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self


@dataclass(frozen=True, slots=True, eq=False)
class StreamPosition:
    """The position of a message in a stream. A subscriber has the position of the last message that it received.

    Args:
        epoch: the name of one unbroken numbering of the stream; `""` if the stream does not exist yet.
        offset: the number of the message in this epoch, from 1. The position before the first message has the offset 0.
    """

    epoch: str
    offset: int

    def as_dict(self) -> dict[str, str | int]:
        """Return the position as a dict with `epoch` and `offset`, which can be encoded as JSON."""
        return {"epoch": self.epoch, "offset": self.offset}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StreamPosition):
            return NotImplemented
        return self.offset == other.offset and self.epoch == other.epoch

    def __hash__(self) -> int:
        return hash((self.epoch, self.offset))


#: The first character of the string that takes the place of an epoch if the stream does not exist. The rest of that
#: string is a digest of the lineage (see `beginning_of`). No epoch begins with `~`.
_LINEAGE: Final = "~"


def beginning_of(lineage: str) -> StreamPosition:
    """Return the position before the first message of a stream that does not exist yet.

    Args:
        lineage: the name of the store's data set. The name changes if data may have been lost. If it is unknown (`""`),
            the position is `("", 0)`.
    """
    digest = hashlib.blake2b(lineage.encode(), digest_size=6).hexdigest()
    return StreamPosition(_LINEAGE + digest if lineage else "", 0)


def is_beginning(position: StreamPosition) -> bool:
    """Return whether a position has the form that `beginning_of` returns for a known lineage."""
    return position.epoch.startswith(_LINEAGE)


#: The last character of an epoch that began after the earlier messages of the stream were deleted.
LATER: Final = "-"


def later_epoch(token: str) -> str:
    """Return the name of an epoch that begins after the earlier messages of the stream were deleted.

    Args:
        token: a random string.
    """
    return token + LATER


def is_later_epoch(epoch: str) -> bool:
    """Return whether an epoch began after the earlier messages of its stream were deleted.

    A subscriber whose position is from before the stream's first message may have missed the deleted messages.
    """
    return epoch.endswith(LATER)


#: Matches the text of a page position, which consists of the offset, a digest of the stream's name, and the epoch. If
#: the stream did not exist, the string from `beginning_of` takes the place of the epoch.
_PAGE_POSITION: Final = re.compile(r"(0|[1-9][0-9]{0,14})\.([0-9a-f]{16})\.([!-~]{1,100})")


@dataclass(frozen=True, slots=True, eq=False)
class PagePosition(StreamPosition):
    """The position that a stream had before the data of a web page were read. `position()` returns it.

    `str()` converts the position to a string, which a web page passes to its client. The string contains a digest of
    the stream's name, but not the name itself.

    Args:
        stream: the name of the stream, with its namespace.
        beginning: the string from `beginning_of` that takes the place of the epoch if the stream did not exist; `""` if
            the stream existed, or if the lineage is unknown.
    """

    stream: str
    beginning: str = ""

    def __str__(self) -> str:
        return f"{self.offset}.{_digest(self.stream)}.{self.epoch or self.beginning or _LINEAGE}"

    @property
    def named(self) -> StreamPosition:
        """The position in the form that clients send. If the stream did not exist, `beginning` is its epoch."""
        return self if self.epoch else StreamPosition(self.beginning, self.offset)

    @classmethod
    def parse(cls, text: object, stream: str) -> Self | None:
        """Parse the text of a position. Return None if the text is not a position in this stream.

        Args:
            text: the value that the client has sent.
            stream: the name of the stream, with its namespace.
        """
        found = _PAGE_POSITION.fullmatch(text) if isinstance(text, str) else None
        if found is None or found[2] != _digest(stream):
            return None
        offset, epoch = int(found[1]), found[3]
        if not epoch.startswith(_LINEAGE):
            return cls(epoch, offset, stream)
        return cls("", 0, stream, epoch if epoch != _LINEAGE else "") if offset == 0 else None


def _digest(stream: str) -> str:
    return hashlib.blake2b(stream.encode(errors="surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """The messages that a client requests with `subscribe` or `history`, see Protocol: History.

    Args:
        since: a time, in seconds since 1970, by the client's clock or from its web page; None if the client has sent no
            time. The client requests the messages since this time for streams that are not in `streams`.
        streams: the position of the last message that the client received, by stream id. The client requests the
            messages after it.
    """

    since: float | None = None
    streams: Mapping[str, StreamPosition] = field(default_factory=dict)

    def merged(self, other: HistoryRequest) -> HistoryRequest:
        """Return a request for all messages that are requested by this request or by the other request.

        If the requests have different positions in a stream, or one has a position and the other a time, the merged
        request has `UNKNOWN_POSITION` for this stream. The server then rejects the request. If one of the two were
        used, messages between them could be lost unnoticed.
        """
        times = [each.since for each in (self, other) if each.since is not None]
        streams = dict(self.streams)
        for name, position in other.streams.items():
            streams[name] = position if streams.get(name, position) == position else UNKNOWN_POSITION
        for one, two in ((self, other), (other, self)):
            if one.since is not None:
                streams |= dict.fromkeys(two.streams.keys() - one.streams.keys(), UNKNOWN_POSITION)
        return HistoryRequest(min(times, default=None), streams)


#: A position that no stream has. The server rejects a history request with this position.
UNKNOWN_POSITION: Final = StreamPosition("?", 0)
