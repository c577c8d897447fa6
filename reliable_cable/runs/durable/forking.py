"""Forks durable streams: a new stream begins with a copy of the data of another one. All functions run in threads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from reliable_cable.exceptions import StoreError
from reliable_cable.runs.durable_models import DurableStream

from .framing import Piece, cut, media_type, repack
from .offsets import ForeignOffset, InvalidOffset, parse_offset
from .reading import MAX_ENTRIES, number_entries, read_chunk_in_thread
from .storage import Conflict, Creation, Gone, create, find

#: The maximum number of entries, and the maximum size of data, in bytes, that a fork can copy.
MAX_COPIED: Final = 10 * MAX_ENTRIES
MAX_COPIED_SIZE: Final = 2**24
#: The maximum number of streams whose offsets a fork accepts: its source, the source of that stream, and so on.
MAX_ANCESTORS: Final = 100


class InvalidFork(Exception):
    """Raised if the place at which to fork a stream is not valid. The text of the error is for the client."""


class ForkTooLarge(Exception):
    """Raised if a fork would have to copy too much data."""


@dataclass(frozen=True, slots=True)
class Fork:
    """A request to fork a stream.

    Args:
        source: the name of the stream to fork.
        offset: the offset at which to fork; `""` for the end.
        size: the number of bytes or JSON values to copy from the entry that follows the offset.
    """

    source: str
    offset: str = ""
    size: int = 0


def create_fork(user: Any, name: str, creation: Creation, fork: Fork, body: bytes) -> tuple[DurableStream, bool]:
    """Create a stream that begins with the data of another one. Return the stream, and whether it is new.

    Args:
        user: the user, who becomes the owner.
        name: the name of the new stream.
        creation: the properties of the new stream. If the content type is `""`, that of the source is used.
        fork: the source, and the place in the source up to which its data are copied.
        body: the data that follow those of the source.

    Raises:
        NotFound: there is no source that the user may read, or the user may not create the stream.
        Trimmed: data of the source are no longer stored.
        InvalidFork: the place at which to fork is not valid, or is beyond the end of the source.
        InvalidBody: the entry after the offset is shorter than `fork.size`, or the body cannot be appended.
        ForkTooLarge: there are too many data to copy.
        Conflict: the source was deleted, its content type is not the requested one, or a different stream has the name.
        StoreError: the data of the source could not be read, or cannot be read yet.
        TooManyStreams, NotDurable: see `storage.create`.
    """
    try:
        source = find(user, fork.source)
    except Gone:
        raise Conflict("The stream to fork was deleted.") from None
    if creation.content_type and media_type(creation.content_type) != media_type(source.content_type):
        raise Conflict("The stream to fork has another content type.")
    creation = replace(creation, content_type=source.content_type, source=source)
    creation = replace(creation, fork=[fork.source, fork.offset, fork.size])
    if creation.ttl is None and creation.expires_at is None:
        inherited = None if source.ttl is not None else source.expires_at
        creation = replace(creation, ttl=source.ttl, expires_at=inherited)
    count = source.count if not fork.offset else _position(fork.offset, source)

    ancestors = {known: min(common, count) for known, common in source.ancestors.items()}
    ancestors = dict([*ancestors.items(), (source.generation, count)][-MAX_ANCESTORS:])

    def copy() -> list[dict[str, Any]]:
        return [repack(piece) for piece in _copy(source, count, fork.size)]

    return create(user, name, replace(creation, ancestors=ancestors, inherited=copy), body)


def _position(offset: str, source: DurableStream) -> int:
    try:
        count = parse_offset(offset, source.generation, source.ancestors)
    except (InvalidOffset, ForeignOffset):
        raise InvalidFork("The Stream-Fork-Offset must be an offset of the stream to fork.") from None
    if count > source.count:
        raise InvalidFork("The Stream-Fork-Offset is beyond the end of the stream to fork.")
    return count


def _copy(source: DurableStream, count: int, size: int) -> list[Piece]:
    """Return the data of the first entries of a stream, and the first bytes or values of the next entry.

    Raises:
        InvalidFork, InvalidBody: the next entry is missing, or has fewer bytes or values.
        ForkTooLarge, Trimmed: see `create_fork`.
        StoreError: the store has not numbered all entries yet.
    """
    pieces: list[Piece] = []
    total = 0
    wanted = count + (size > 0)
    is_numbered = False
    while len(pieces) < wanted:
        chunk = read_chunk_in_thread(source, len(pieces))
        if not chunk.pieces:
            if len(pieces) >= source.count:
                raise InvalidFork("The Stream-Fork-Sub-Offset is beyond the end of the stream to fork.")
            if is_numbered:
                raise StoreError("The newest data of the stream to fork cannot be read yet. Try again.")
            number_entries(source)
            is_numbered = True
        pieces += chunk.pieces
        total += sum(len(piece.data) + sum(map(len, piece.values)) for piece in chunk.pieces)
        if len(pieces) > MAX_COPIED or total > MAX_COPIED_SIZE:
            raise ForkTooLarge
    pieces = pieces[:wanted]
    if size:
        pieces[-1] = cut(pieces[-1], size)
    return pieces
