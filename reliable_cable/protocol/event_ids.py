"""The ids of server-sent events. They hold the position of a reader in each of its streams.

When a browser reconnects, it sends the last id that it received. The reader then resumes all of its streams.

* The id of a reader with one stream is `<offset>/<epoch>/<stream>`, as in AnyCable. A stream whose name ends with a
  space gets the other form.
* The id of a reader with several streams is `*` and, for each stream, `<offset>/<epoch>/<digest>`, separated by commas.
  The digests of the names keep the id so short that servers and proxies accept it as a header.
"""

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from .positions import UNKNOWN_POSITION, StreamPosition

#: The maximum number of streams of one reader. nginx accepts headers of up to 8 KB.
MAX_STREAMS: Final = 100
#: The approximate maximum number of bytes of an id that is sent: that of a reader with `MAX_STREAMS` streams.
MAX_ID_SIZE: Final = 4 * 1024
#: The maximum number of characters of an event id. Longer ones are ignored.
MAX_ID_LENGTH: Final = 8 * 1024

#: The first character of an id with several streams.
_SEVERAL: Final = "*"
_POSITION: Final = r"([0-9]{1,18})/([^/,]{0,64})/"
_ONE_STREAM: Final = re.compile(f"{_POSITION}(.+)", re.DOTALL)
#: The end of a stream id that differs from the name of its stream, see Protocol: Stream ids. A reader has a position
#: for such a stream id only if its event id contains one.
_ALIAS: Final = re.compile("#[0-9a-f]{18}$")
_ITEM: Final = re.compile(f"{_POSITION}([A-Za-z0-9_-]{{8}})")


@lru_cache(maxsize=4096)  # every event of a reader has the digests of all of its streams
def digest(name: str) -> str:
    """Return 8 characters that stand for the name of a stream in an id."""
    return urlsafe_b64encode(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).digest()).decode()


class EventPositions(Mapping[str, StreamPosition]):
    """The positions in an event id, by stream name. The names are unknown: an id has only their digests.

    Args:
        by_digest: the positions, by the digest of the stream's name.
        default: the position in every stream that the id does not contain. None means that there is none.
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
    """The positions of a reader, from which its next id is made.

    Only the position that has changed is encoded anew for each event, since a reader may have many streams.

    Args:
        positions: the positions, by stream name.
        former: further positions, by digest. A position in `positions` replaces the one with the same digest.
    """

    __slots__ = ("_items", "_only")

    def __init__(self, positions: Mapping[str, StreamPosition], former: Mapping[str, StreamPosition]) -> None:
        #: The part of the id for each stream, by digests.
        self._items = {key: _item(position, key) for key, position in former.items()}
        #: The id of a reader with one stream; `""` with several streams, or if the name of the stream is not known.
        self._only = ""
        for name, position in positions.items():
            self.move(name, position)

    def __contains__(self, name: str) -> bool:
        return digest(name) in self._items

    def __len__(self) -> int:
        return len(self._items)

    def move(self, name: str, position: StreamPosition) -> None:
        """Set the position in a stream."""
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
    """Return an id; `""` if there are no positions. The arguments are those of `ReaderPositions`."""
    return ReaderPositions(positions, former).make_id()


def one_stream_id(name: str, position: StreamPosition) -> str:
    """Return the id of a reader with one stream."""
    if name.endswith(" "):  # a browser sends the id as a header, which loses spaces at its end
        return f"{_SEVERAL}{position.offset}/{position.epoch}/{digest(name)}"
    return f"{position.offset}/{position.epoch}/{name}"


def parse_id(text: str) -> EventPositions:
    """Return the positions in an id.

    If the text is not an id, it is unknown what the reader has received. Each of the reader's streams then gets a
    position that no stream has, so that the reader is told of a loss.
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
