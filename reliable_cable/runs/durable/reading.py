"""Reads the data of durable streams from the stream store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.utils import timezone

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.exceptions import BroadcastError, StoreError
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.runs.durable_models import DurableStream
from reliable_cable.stores.engine import get_engine
from reliable_cable.validation import qualify_stream

from .framing import Piece, unpack
from .storage import set_shift

#: The maximum number of entries in a response, and the size of their data, in bytes, after which no more are added.
MAX_ENTRIES: Final = 1000
MAX_SIZE: Final = 2**20
#: How long the store may take to number entries after their transaction has committed. If they are missing after this
#: time, the store has lost them.
NUMBERING_TIME: Final = timedelta(seconds=10)


class Trimmed(Exception):
    """Raised if data after an offset are no longer stored.

    Args:
        earliest: the number of entries before the first one that is stored.
    """

    def __init__(self, earliest: int) -> None:
        super().__init__(earliest)
        self.earliest = earliest


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive data of a stream.

    Args:
        pieces: the data.
        end: the number of entries before the end of the data.
        up_to_date: whether the stream had no data after these.
        closed: whether the stream is closed, and has no more data.
    """

    pieces: Sequence[Piece]
    end: int
    up_to_date: bool
    closed: bool


async def read_chunk(row: DurableStream, after: int) -> Chunk:
    """Read the data after an offset, up to a maximum size.

    Args:
        row: the row of the stream.
        after: the number of entries before the offset.

    Raises:
        Trimmed: the data are no longer stored.
        StoreError: the store could not be read.
    """
    store = get_engine().streams
    page = await store.aread(_name(row), **_arguments(row, after))
    if _may_have_shifted(row, page):
        first = await store.aread(_name(row), after=0, limit=1)
        if _shift(row, first) != row.shift:
            await run_handler(set_shift, row, _shift(row, first))
            page = await store.aread(_name(row), **_arguments(row, after))
    return _chunk(row, after, page)


def read_chunk_in_thread(row: DurableStream, after: int) -> Chunk:
    """Sync version of `read_chunk`."""
    store = get_engine().streams
    page = store.read(_name(row), **_arguments(row, after))
    if _may_have_shifted(row, page):
        first = store.read(_name(row), after=0, limit=1)
        if _shift(row, first) != row.shift:
            set_shift(row, _shift(row, first))
            page = store.read(_name(row), **_arguments(row, after))
    return _chunk(row, after, page)


def number_entries(row: DurableStream) -> None:
    """Make the store number the entries whose transactions have committed.

    Raises:
        StoreError: the store could not number them.
    """
    try:
        get_engine().streams.number_outbox([_name(row)])
    except BroadcastError as error:
        raise StoreError(f"The entries of the stream {row.stream!r} could not be numbered: {error}") from error


def _name(row: DurableStream) -> str:
    return qualify_stream(row.stream, row.namespace)


def _arguments(row: DurableStream, after: int) -> dict[str, Any]:
    """Return the arguments of `StreamStore.read`."""
    return {"after": max(0, after - row.shift), "limit": MAX_ENTRIES, "max_size": MAX_SIZE}


def _may_have_shifted(row: DurableStream, page: StreamPage) -> bool:
    """Return whether the store may have begun a new epoch, in which offsets start at 1 again."""
    if page.entries:
        return _shift(row, page) != row.shift
    return page.tail + row.shift < row.count


def _shift(row: DurableStream, page: StreamPage) -> int:
    """Return the difference between the numbers and the offsets of entries in a page; `row.shift` if none has data."""
    pieces = _pieces(page)
    return next((piece.number - offset for offset, piece in pieces if piece.has_data), row.shift)


def _chunk(row: DurableStream, after: int, page: StreamPage) -> Chunk:
    """Return the data of a page of the store.

    Raises:
        Trimmed: the data are no longer stored.
    """
    pieces = [piece for _, piece in _pieces(page)]
    found = [piece for piece in pieces if piece.number > after and piece.has_data]
    if (found[0].number if found else _expected(row, page, after)) != after + 1:
        raise Trimmed(_earliest(row, page, after))
    end = found[-1].number if found else after
    reached = end >= row.count and (not page.entries or page.entries[-1].offset == page.tail)
    return Chunk(found, end, reached, reached and (row.closed or any(piece.end for piece in pieces)))


def _earliest(row: DurableStream, page: StreamPage, after: int) -> int:
    """Return the number of entries before the first one that is stored, if the entry after `after` is not stored."""
    if page.low > page.tail or after >= page.tail + row.shift:
        return row.count  # the store has lost the rest of the stream
    return page.low + row.shift - 1


def _pieces(page: StreamPage) -> list[tuple[int, Piece]]:
    """Return the data of the entries of a page, with their offsets in the store."""
    pieces = [(entry.offset, unpack(json.loads(entry.data))) for entry in page.entries]
    return [(offset, piece) for offset, piece in pieces if piece is not None]


def _expected(row: DurableStream, page: StreamPage, after: int) -> int:
    """Return the number of the next entry if a page has no entry after `after`; 0 if entries were lost."""
    complete = after >= row.count
    arriving = page.tail + row.shift < row.count and timezone.now() - row.appended_at < NUMBERING_TIME
    return after + 1 if complete or arriving else 0
