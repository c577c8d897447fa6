"""The ids of server-sent events, which contain the reader's position in each of its streams.

When a browser reconnects, it sends the last id that it has received. So the server can resume all streams.

* For a reader with one stream, the id is `<offset>/<epoch>/<stream>`, as in AnyCable. If the name of the stream ends
  with a space, the id has the form for several streams.
* For a reader with several streams, the id is `*` and `<offset>/<epoch>/<digest>` for each stream, separated by commas.
  A digest replaces the name of each stream, so that the id is short enough for the headers that servers and proxies
  accept.
"""

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from .positions import UNKNOWN_POSITION, StreamPosition

#: The maximum number of streams that a reader may have. A browser sends the id in a header, and nginx accepts headers
#: of up to 8 KB.
MAX_STREAMS: Final = 100
#: The approximate size of the largest id that is sent, in bytes. Such an id has `MAX_STREAMS` streams.
MAX_ID_SIZE: Final = 4 * 1024
#: The maximum length of a received id, in characters. A longer id is not parsed.
MAX_ID_LENGTH: Final = 8 * 1024

#: The first character of an id with several streams.
_SEVERAL: Final = "*"
_POSITION: Final = r"([0-9]{1,18})/([^/,]{0,64})/"
_ONE_STREAM: Final = re.compile(f"{_POSITION}(.+)", re.DOTALL)
#: Matches a stream id that differs from the name of its stream (see Protocol: Stream ids). `EventPositions` does not
#: apply its default position to such a stream id.
_ALIAS: Final = re.compile("#[0-9a-f]{18}$")
_ITEM: Final = re.compile(f"{_POSITION}([A-Za-z0-9_-]{{8}})")


@lru_cache(maxsize=4096)  # so that a digest is not computed again for each event
def digest(name: str) -> str:
    """Return the digest that replaces the name of a stream in an id. It has 8 characters."""
    return urlsafe_b64encode(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).digest()).decode()


class EventPositions(Mapping[str, StreamPosition]):
    """The positions in an event id, by stream name.

    A name is looked up by its digest, because an id with several streams contains no names.

    Args:
        by_digest: the positions, by the digest of the stream's name.
        default: the position in all streams that the id does not contain; None if these streams have no position.
    """

    def __init__(self, by_digest: Mapping[str, StreamPosition], default: StreamPosition | None = None) -> None:
        self.by_digest = by_digest
        self._default = default

    def __getitem__(self, name: str) -> StreamPosition:
        default = None if _ALIAS.search(name) else self._default
        position = self.by_digest.get(digest(name), default)
        if position is None:
            raise KeyError(name)
        return position

    def __iter__(self) -> Iterator[str]:
        """Iterate over the digests in place of the stream names, which are unknown."""
        return iter(self.by_digest)

    def __len__(self) -> int:
        return len(self.by_digest) + (self._default is not None)


class ReaderPositions:
    """The positions of a reader, which are encoded as the id of the next event.

    For each event, only the position that has changed is encoded again, because a reader may have many streams.

    Args:
        positions: the positions, by stream name.
        former: positions from an earlier id, by digest. A position in `positions` replaces the former position in the
            same stream.
    """

    __slots__ = ("_items", "_only")

    def __init__(self, positions: Mapping[str, StreamPosition], former: Mapping[str, StreamPosition]) -> None:
        #: The part of the id for each stream, by digest.
        self._items = {key: _item(position, key) for key, position in former.items()}
        #: The id if the reader has one stream; `""` if it has several, or if the name of the stream is unknown.
        self._only = ""
        for name, position in positions.items():
            self.move(name, position)

    def __contains__(self, name: str) -> bool:
        return digest(name) in self._items

    def __len__(self) -> int:
        return len(self._items)

    def move(self, name: str, position: StreamPosition) -> None:
        """Set the reader's position in a stream."""
        key = digest(name)
        self._items[key] = _item(position, key)
        self._only = one_stream_id(name, position) if len(self._items) == 1 else ""

    def make_id(self) -> str:
        """Return the id; `""` if there are no positions."""
        if self._only or not self._items:
            return self._only
        return _SEVERAL + ",".join(self._items.values())


def _item(position: StreamPosition, key: str) -> str:
    return f"{position.offset}/{position.epoch}/{key}"


def make_id(positions: Mapping[str, StreamPosition], former: Mapping[str, StreamPosition]) -> str:
    """Return an id with these positions; `""` if there are none. The arguments are those of `ReaderPositions`."""
    return ReaderPositions(positions, former).make_id()


def one_stream_id(name: str, position: StreamPosition) -> str:
    """Return the event id for a reader with one stream. The id contains the reader's position in that stream."""
    if name.endswith(" "):  # a browser sends the id in a header, which cannot end with spaces
        return f"{_SEVERAL}{position.offset}/{position.epoch}/{digest(name)}"
    return f"{position.offset}/{position.epoch}/{name}"


def parse_id(text: str) -> EventPositions:
    """Return the positions in an id. The empty string has no positions.

    If the string is not a valid id, every stream has an unknown position. The reader is then told that messages were
    lost.
    """
    if not text:
        return EventPositions({})
    unknown = EventPositions({}, UNKNOWN_POSITION)
    if len(text) > MAX_ID_LENGTH:
        return unknown
    if text.startswith(_SEVERAL):
        matches = [_ITEM.fullmatch(item) for item in text[1:].split(",")]
        if not all(matches):
            return unknown
        return EventPositions({match[3]: StreamPosition(match[2], int(match[1])) for match in matches if match})
    match = _ONE_STREAM.fullmatch(text)
    if match is None:
        return unknown
    return EventPositions({digest(match[3]): StreamPosition(match[2], int(match[1]))})
