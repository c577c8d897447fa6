"""Pages of history that many ask for at once: read once, and encoded once for each identifier.

After a restart all clients of a stream miss the same messages. Entries never change within an epoch, so that what was
read for one is right for all, as long as nothing is taken for the stream's end that lies before the hub's position.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage

if TYPE_CHECKING:
    from reliable_cable.stores.streams.base import StreamStore

    from .fanout import Group

#: Entries that are read from the store at once.
PAGE_SIZE: Final = 200
#: Seconds for which a page is kept: long enough for many who come back at once.
LIFE: Final = 2.0
#: Characters of payload that are kept at most, in pages and in frames each.
MOST: Final = 16 * 1024 * 1024


def _answers(page: StreamPage, after: int, start: StreamPosition, hub: StreamPosition) -> bool:
    """Whether a page that was read after an offset is right for who stands at `start`, while the hub stands at `hub`.

    Not if it ends before either, nor if all that it has for them is where it was full.
    """
    if page.epoch != hub.epoch or start.epoch not in (page.epoch, ""):
        return False  # one of them may know what has not been read yet
    if page.tail < hub.offset or not max(after, page.low - 1) <= start.offset <= page.tail:
        return False
    return len(page.entries) < PAGE_SIZE or start.offset < page.entries[-1].offset


class _Kept:
    """A page that is kept, and the frames that were made of it.

    Args:
        page: what the store returned.
        after: the offset after which it was read.
        until: when it is to go, by the loop's clock.
    """

    __slots__ = ("after", "frames", "page", "size", "until")

    def __init__(self, page: StreamPage, after: int, until: float) -> None:
        self.page = page
        self.after = after
        self.until = until
        self.size = sum(len(entry.data) for entry in page.entries)
        self.frames: dict[tuple[str, str | None, type[Frame], int], Frame] = {}


class Pages:
    """Reads the history of streams for one event loop.

    Args:
        store: keeps the streams.
    """

    def __init__(self, store: StreamStore) -> None:
        self._store = store
        #: The page that was read last, by stream and by whether it is for followers; the oldest page first.
        self._kept: dict[tuple[str, bool], _Kept] = {}
        self._reading: dict[tuple[str, int, bool], asyncio.Task[StreamPage]] = {}
        self._size = 0
        self._frames_size = 0
        self._timer: asyncio.TimerHandle | None = None

    async def read(
        self, stream: str, start: StreamPosition, hub: StreamPosition | None, *, following: bool = False
    ) -> StreamPage:
        """Return what comes after a position, up to `PAGE_SIZE` entries; the page may begin before it.

        Args:
            stream: its name.
            start: the position.
            hub: where the hub stands in the stream. The page reaches that, or was read just now.
            following: whether the subscriber was never away (see `StreamStore.read`).

        Raises:
            StoreError: the store could not be read.
        """
        if hub is None or not hub.epoch:
            return await self._ask(stream, start.offset, hub, following)
        loop = asyncio.get_running_loop()
        kept = self._kept.get((stream, following))
        if kept is not None and kept.until > loop.time() and _answers(kept.page, kept.after, start, hub):
            return kept.page
        key = (stream, start.offset, following)
        reading = self._reading.get(key)
        if reading is not None:
            page = await asyncio.shield(reading)
            if _answers(page, start.offset, start, hub):
                return page
            # It was begun before what is known now.
            return await self._ask(stream, start.offset, hub, following)
        reading = self._reading[key] = loop.create_task(self._read(stream, start.offset, hub, following))
        reading.add_done_callback(_retrieved)
        return await asyncio.shield(reading)

    async def _read(self, stream: str, after: int, hub: StreamPosition, following: bool) -> StreamPage:
        try:
            page = await self._ask(stream, after, hub, following)
        finally:
            del self._reading[stream, after, following]
        if page.entries and page.low - 1 <= after:
            self._keep((stream, following), page, after)
        return page

    async def _ask(self, stream: str, after: int, hub: StreamPosition | None, following: bool) -> StreamPage:
        return await self._store.aread(stream, after=after, limit=PAGE_SIZE, known=hub, following=following)

    def encode(self, group: Group, stream: str, epoch: str, entry: Entry) -> Frame:
        """Return an entry as a frame: for others of the group, it has been made already."""
        kept = self._kept.get((stream, True)) or self._kept.get((stream, False))
        if kept is None or kept.page.epoch != epoch or len(group.readers) < 2:
            return group.encode(epoch, entry.offset, entry.data)
        key = (group.identifier, group.stream_id, group.form, entry.offset)
        frame = kept.frames.get(key)
        if frame is None:
            frame = group.encode(epoch, entry.offset, entry.data)
            if self._frames_size + len(frame) <= MOST:
                self._frames_size += len(frame)
                kept.frames[key] = frame
        return frame

    # -- keeping ------------------------------------------------------------------------------------------------------

    def _keep(self, key: tuple[str, bool], page: StreamPage, after: int) -> None:
        loop = asyncio.get_running_loop()
        self._drop(key)
        kept = _Kept(page, after, loop.time() + LIFE)
        if kept.size > MOST:
            return
        self._kept[key] = kept
        self._size += kept.size
        while self._size > MOST:
            self._drop(next(iter(self._kept)))
        if self._timer is None:
            self._timer = loop.call_later(LIFE, self._expire, loop)

    def _drop(self, key: tuple[str, bool]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= kept.size
            self._frames_size -= sum(len(frame) for frame in kept.frames.values())

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for key in [key for key, kept in self._kept.items() if kept.until <= now]:
            self._drop(key)
        self._timer = loop.call_later(LIFE, self._expire, loop) if self._kept else None


def _retrieved(reading: asyncio.Task[StreamPage]) -> None:
    """Whoever waited for it may have gone: then nobody is told that it failed."""
    if not reading.cancelled():
        reading.exception()
