"""Reads history for many subscribers. Entries that several subscribers need are read once and encoded once.

After a restart, all clients of a stream have missed the same messages. Entries never change within an epoch. So a page
that was read for one subscriber is valid for all subscribers, unless it lacks messages that the hub has already
delivered.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from reliable_cable.concurrency.tasks import mark_retrieved
from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.streams.base import StreamStore

from .subscriber import SubscriberGroup

#: The maximum number of entries in a page of entries.
PAGE_LENGTH: Final = 200
#: The size, in bytes, at which a page of entries is full.
PAGE_SIZE: Final = 1024 * 1024
#: How long, in seconds, a page of entries is cached. This is enough for clients that reconnect at about the same time.
PAGE_TTL: Final = 2.0
#: The maximum total size, in characters, of the cached pages. The cached frames have a limit of the same size.
CACHE_SIZE: Final = 16 * 1024 * 1024


def _can_use(page: StreamPage, after: int, start: StreamPosition, hub: StreamPosition) -> bool:
    """Return whether a page contains the entries that a subscriber needs next.

    A page that was read too early may lack messages up to the position of the hub or of the subscriber. A page may also
    end at the subscriber's position, although the stream has more entries.

    Args:
        page: a page that was read for this subscriber or another one.
        after: the offset after which the page was read.
        start: the position of the subscriber.
        hub: the position of the hub in the stream.
    """
    if page.epoch != hub.epoch or start.epoch not in (page.epoch, ""):
        return False  # the hub or the client may have a newer epoch than the page
    if page.tail < hub.offset or not max(after, page.low - 1) <= start.offset <= page.tail:
        return False
    return page.is_last or start.offset < page.entries[-1].offset


@dataclass(slots=True)
class _CachedPage:
    """A cached page of entries, and the frames of these entries.

    Args:
        page: the cached page.
        after: the offset after which the page was read.
        expires: the time at which the page is dropped, by the clock of the event loop.
    """

    page: StreamPage
    after: int
    expires: float
    frames: dict[tuple[SubscriberGroup, int], Frame] = field(default_factory=dict)
    #: The bytes of all frames of a range of entries, by group and range. The value is None after the first request, and
    #: empty if the frames are too large.
    blocks: dict[tuple[SubscriberGroup, int, int], bytes | None] = field(default_factory=dict)


class HistoryReader:
    """Reads entries for the subscribers of an event loop.

    Args:
        store: the stream store.
    """

    def __init__(self, store: StreamStore) -> None:
        self._store = store
        #: The latest page of each stream, by the arguments `stream` and `following` of `read`. The oldest page is the
        #: first.
        self._pages: dict[tuple[str, bool], _CachedPage] = {}
        self._reads: dict[tuple[str, int, bool], asyncio.Task[StreamPage]] = {}
        self._size = 0
        self._frames_size = 0
        self._timer: asyncio.TimerHandle | None = None

    async def read(
        self, stream: str, start: StreamPosition, hub: StreamPosition, *, following: bool = False
    ) -> StreamPage:
        """Return a page with the entries after a position. The page may also contain entries before the position.

        Args:
            stream: the name of the stream.
            start: the position of the subscriber.
            hub: the position of the hub in the stream. A page from the cache is not returned if it was read before the
                store had the message at this position.
            following: whether the subscriber is a follower (see `StreamStore.read`).

        Raises:
            StoreError: the store could not be read.
        """
        if not hub.epoch:
            return await self._ask(stream, start.offset, hub, following)
        loop = asyncio.get_running_loop()
        # A follower can also use a page that was read for a subscriber that is not a follower. Some
        # entries are read only for followers, but these entries are older than all entries of such a page.
        for cached in (self._pages.get((stream, following)), self._pages.get((stream, False))):
            if cached is not None and cached.expires > loop.time() and _can_use(cached.page, cached.after, start, hub):
                return cached.page
        key = (stream, start.offset, following)
        reading = self._reads.get(key)
        if reading is not None:
            page = await asyncio.shield(reading)
            if _can_use(page, start.offset, start, hub):
                return page
            # The read began before the store had the message at the hub's position.
            return await self._ask(stream, start.offset, hub, following)
        reading = self._reads[key] = loop.create_task(self._read(stream, start.offset, hub, following))
        reading.add_done_callback(mark_retrieved)
        return await asyncio.shield(reading)

    async def _read(self, stream: str, after: int, hub: StreamPosition, following: bool) -> StreamPage:
        try:
            page = await self._ask(stream, after, hub, following)
        finally:
            del self._reads[stream, after, following]
        if page.entries and page.low - 1 <= after:
            self._cache((stream, following), page, after)
        return page

    async def _ask(self, stream: str, after: int, hub: StreamPosition, following: bool) -> StreamPage:
        return await self._store.aread(
            stream, after=after, limit=PAGE_LENGTH, max_size=PAGE_SIZE, known=hub, following=following
        )

    def block(
        self, group: SubscriberGroup, stream: str, epoch: str, entries: Sequence[Entry], limit: int
    ) -> bytes | None:
        """Encode entries as the bytes of all their frames, if several subscribers of a group need the same entries.

        Args:
            group: the group of the subscriber.
            stream: the name of the stream.
            epoch: the epoch of the entries.
            entries: successive entries.
            limit: the maximum total size of the frames, in characters.

        Returns:
            The bytes. None at the first request for these entries, because usually only one subscriber needs them.
            Also None if the group has one subscriber, if no page of the epoch is cached, or if the frames exceed the
            limit or differ for each client.
        """
        cached = self._cached(group, stream, epoch)
        if cached is None or not entries or group.form.added:
            return None
        key = (group, entries[0].offset, entries[-1].offset)
        block = cached.blocks.get(key)
        if block is None and key in cached.blocks:
            frames = [self.encode(group, stream, epoch, entry) for entry in entries]
            size = sum(map(len, frames))
            block = b"".join([frame.wire for frame in frames]) if size <= limit else b""
            if self._frames_size + len(block) > CACHE_SIZE:
                return block or None
            self._frames_size += len(block)
        cached.blocks[key] = block
        return block or None

    def encode(self, group: SubscriberGroup, stream: str, epoch: str, entry: Entry) -> Frame:
        """Encode an entry as a frame. A frame that was cached for another subscriber of the group is reused."""
        cached = self._cached(group, stream, epoch)
        if cached is None:
            return group.encode(epoch, entry.offset, entry.data)
        key = (group, entry.offset)
        frame = cached.frames.get(key)
        if frame is None:
            frame = group.encode(epoch, entry.offset, entry.data)
            if self._frames_size + len(frame) <= CACHE_SIZE:
                self._frames_size += len(frame)
                cached.frames[key] = frame
        return frame

    # -- the cache ----------------------------------------------------------------------------------------------------

    def _cached(self, group: SubscriberGroup, stream: str, epoch: str) -> _CachedPage | None:
        """Return the page with a group's cached frames; None if there is none, or if the group has one subscriber."""
        if len(group.subscribers) < 2:
            return None
        cached = self._pages.get((stream, True)) or self._pages.get((stream, False))
        return cached if cached is not None and cached.page.epoch == epoch else None

    def _cache(self, key: tuple[str, bool], page: StreamPage, after: int) -> None:
        loop = asyncio.get_running_loop()
        self._drop(key)
        if page.size > CACHE_SIZE:
            return
        self._pages[key] = _CachedPage(page, after, loop.time() + PAGE_TTL)
        self._size += page.size
        while self._size > CACHE_SIZE:
            self._drop(next(iter(self._pages)))
        if self._timer is None:
            self._timer = loop.call_later(PAGE_TTL, self._expire, loop)

    def _drop(self, key: tuple[str, bool]) -> None:
        cached = self._pages.pop(key, None)
        if cached is not None:
            self._size -= cached.page.size
            self._frames_size -= sum(map(len, cached.frames.values()))
            self._frames_size -= sum(len(block) for block in cached.blocks.values() if block is not None)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for key in [key for key, cached in self._pages.items() if cached.expires <= now]:
            self._drop(key)
        self._timer = loop.call_later(PAGE_TTL, self._expire, loop) if self._pages else None
