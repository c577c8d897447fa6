"""The sources from which durable streams are read: a stream that clients write, or the events of a run."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

from reliable_cable.channel import Channel
from reliable_cable.concurrency.threads import run_handler
from reliable_cable.protocol.messages import dumps
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.runs import events
from reliable_cable.runs.cable import RunChannel, snapshot_of
from reliable_cable.runs.durable.cable import DurableStreamChannel
from reliable_cable.runs.durable.framing import JSON_TYPE, Piece, unpack
from reliable_cable.runs.durable.offsets import ANY_GENERATION, START, format_offset
from reliable_cable.runs.durable.reading import MAX_ENTRIES, MAX_SIZE, Chunk, Trimmed, read_chunk
from reliable_cable.runs.durable.storage import NotFound, reload
from reliable_cable.runs.durable_models import DurableStream
from reliable_cable.runs.models import Run
from reliable_cable.stores.engine import get_engine
from reliable_cable.validation import qualify_stream

#: The position before the snapshot of a run, which precedes its events.
BEGINNING: Final = -1


class Source(ABC):
    """The stream that a request reads. In this module, a position is only the number of the last entry before it."""

    #: The content type of the data.
    content_type: str
    #: The generation, which all offsets contain.
    generation: str
    #: The channel to which live readers subscribe, and the parameter `id` of their subscriptions.
    channel: type[Channel]
    key: str

    def offset(self, position: int) -> str:
        """Return the offset at a position."""
        return format_offset(self.generation, position)

    @abstractmethod
    async def read(self, after: int) -> Chunk:
        """Return the data after a position, up to a maximum size.

        Raises:
            Trimmed: the data are no longer stored.
            NotFound: the stream was deleted.
            StoreError: the store could not be read.
        """

    @abstractmethod
    async def tail(self) -> Chunk:
        """Return a chunk without data at the end of the stream. The errors are as for `read`."""

    @abstractmethod
    def chunk_of(self, frame: Mapping[str, Any], after: int) -> Chunk | None:
        """Return the data in a frame that a live reader has received, without data before a position.

        None means that data between the position and the frame are missing, or that the frame does not tell how the
        stream continues. The reader must then call `read`.
        """

    @abstractmethod
    def earliest(self, trimmed: Trimmed) -> str:
        """Return the first offset at which the stream can be read."""


class StreamSource(Source):
    """A stream that clients write.

    Args:
        row: the row of the stream.
    """

    channel = DurableStreamChannel

    def __init__(self, row: DurableStream) -> None:
        self._row = row
        self._is_new = True
        self.content_type = row.content_type
        self.generation = row.generation
        self.key = str(row.pk)

    async def read(self, after: int) -> Chunk:
        """Return the data after a position."""
        await self._refresh()
        return await read_chunk(self._row, max(after, 0))

    async def tail(self) -> Chunk:
        """Return a chunk without data at the end of the stream."""
        await self._refresh()
        return Chunk((), self._row.count, True, self._row.closed)

    async def _refresh(self) -> None:
        """Read the row again, except at the first call, when the row is new."""
        if not self._is_new:
            self._row = await run_handler(reload, self._row)
        self._is_new = False

    def chunk_of(self, frame: Mapping[str, Any], after: int) -> Chunk | None:
        """Return the entry in a frame; None if entries between the position and the frame are missing."""
        piece = unpack(frame.get("message"))
        # An entry without data has the number of the last entry with data.
        if piece is None or piece.number > after + piece.has_data:
            return None
        return Chunk([piece] if piece.number > after else [], max(piece.number, after), True, piece.end)

    def earliest(self, trimmed: Trimmed) -> str:
        """Return the offset before the first entry that is stored."""
        return self.offset(trimmed.earliest)


class RunSource(Source):
    """The events of a run. A reader that starts at the beginning first gets a snapshot.

    Args:
        run: the run.
    """

    content_type = JSON_TYPE
    channel = RunChannel

    def __init__(self, run: Run) -> None:
        self._stream = run.stream
        self._name = qualify_stream(run.stream, run.namespace)
        self.generation = ANY_GENERATION
        self.key = str(run.pk)

    async def read(self, after: int) -> Chunk:
        """Return the events after a position. At `BEGINNING`, return the snapshot and the events after it."""
        pieces: list[Piece] = []
        ended_attempt: int | None = None
        epoch = None
        if after == BEGINNING:
            snapshot = await snapshot_of(self._stream)
            if snapshot is None:
                raise NotFound
            after, epoch = snapshot.position.offset, snapshot.position.epoch
            pieces.append(Piece(after, values=(dumps(snapshot.data),)))
            if snapshot.data["status"] not in ("queued", "running"):
                ended_attempt = snapshot.data["attempt"]
        page = await self._page(after)
        if epoch is not None and epoch != page.epoch:
            # The store has lost the epoch of the snapshot. All events of the new epoch are later than the snapshot.
            after = 0
            page = await self._page(after)
        self._check(page, after)
        pieces += [Piece(entry.offset, values=(entry.data,)) for entry in page.entries]
        end = page.entries[-1].offset if page.entries else after
        if end < page.tail:
            return Chunk(pieces, end, False, False)
        # The run may have been queued again after the snapshot was read.
        ended = ended_attempt is not None and not _has_later_attempt(page, ended_attempt)
        return Chunk(pieces, end, True, ended or await self._has_ended(page, end))

    async def tail(self) -> Chunk:
        """Return a chunk without data at the end of the stream."""
        page = await self._page(0, limit=0)
        self._adopt(page)
        return Chunk((), page.tail, True, await self._has_ended(page, page.tail))

    async def _page(self, after: int, limit: int = MAX_ENTRIES) -> StreamPage:
        return await get_engine().streams.aread(self._name, after=after, limit=limit, max_size=MAX_SIZE)

    def _check(self, page: StreamPage, after: int) -> None:
        """Check that a page continues at a position.

        Raises:
            Trimmed: the page begins elsewhere, or belongs to another epoch.
        """
        before = self.generation
        self._adopt(page)
        first = page.entries[0].offset if page.entries else page.tail + 1
        if first != after + 1 or (before not in (ANY_GENERATION, self.generation) and after > 0):
            raise Trimmed(0)

    def _adopt(self, page: StreamPage) -> None:
        """Derive the generation from the epoch of a page."""
        self.generation = hashlib.sha256(page.epoch.encode()).hexdigest()[:16] if page.epoch else ANY_GENERATION

    async def _has_ended(self, page: StreamPage, end: int) -> bool:
        """Return whether the run has ended. The last event of its stream, if it is stored, must say so, too."""
        last = page.entries[-1] if page.entries else None
        if last is None and end > 0:
            last = next(iter((await self._page(end - 1, limit=1)).entries), None)
        if last is not None and json.loads(last.data).get("event") not in events.ENDS:
            return False
        run = await run_handler(Run.objects.filter(pk=self.key).only("status").first)
        if run is None:
            raise NotFound
        return run.ended

    def chunk_of(self, frame: Mapping[str, Any], after: int) -> Chunk | None:
        """Return the event in a frame; None if events are missing, or if the event ends an attempt."""
        event, offset = frame.get("message"), frame.get("offset")
        if event is None or offset is None or offset > after + 1 or event.get("event") in events.ENDS:
            return None
        return Chunk([Piece(offset, values=(dumps(event),))] if offset > after else [], max(offset, after), True, False)

    def earliest(self, trimmed: Trimmed) -> str:
        """Return the offset of the beginning, where the snapshot is."""
        return START


def _has_later_attempt(page: StreamPage, attempt: int) -> bool:
    """Return whether a page has events of a later attempt of the run."""
    return any(json.loads(entry.data).get("attempt", 0) > attempt for entry in page.entries)
