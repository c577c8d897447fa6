"""Repairs streams of the hub: reads messages whose announcements by the store are missing or came out of order.

Only a read of the store can prove that messages are lost or that a stream has a new epoch. Its result is compared with
the position that the stream had when the read began, because live messages may arrive during the read.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from reliable_cable.concurrency.retrying import RETRY_DELAY
from reliable_cable.exceptions import StoreError
from reliable_cable.logs import logger
from reliable_cable.protocol.positions import StreamPosition, is_later_epoch
from reliable_cable.protocol.recovery import StreamPage, advance, went_back
from reliable_cable.stores.streams.base import NOWHERE, StreamListener, StreamStore

from .history import PAGE_LENGTH, PAGE_SIZE
from .stream import HubStream

#: The delays, in seconds, after successive reads that have found no new messages. If a read after the last delay finds
#: none either, the repair ends.
IDLE_DELAYS: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


class Repairs:
    """Repairs the streams of an event loop, with at most one running repair for each stream.

    Args:
        store: the stream store.
        listener: the store's listener for this event loop.
        data_lost: a function that is called if a stream has lost messages, because the store may have lost other data,
            too.
    """

    def __init__(self, store: StreamStore, listener: StreamListener, data_lost: Callable[[], None]) -> None:
        self._store = store
        self._listener = listener
        self._data_lost = data_lost

    def request(self, stream: HubStream) -> None:
        """Start a repair of a stream. If a repair of this stream is running, make it read the store once more."""
        stream.repair_again = True
        if stream.repair is None:
            stream.repair = asyncio.get_running_loop().create_task(self._run(stream))

    async def finish(self, stream: HubStream) -> None:
        """Request a repair and wait until it has ended."""
        self.request(stream)
        if stream.repair is not None:
            await asyncio.shield(stream.repair)

    async def _run(self, stream: HubStream) -> None:
        failing = False
        idle = 0
        try:
            while stream.repair_again and stream.users:
                stream.repair_again = False
                asked = stream.position
                try:
                    await self._read(stream, asked)
                except Exception as error:
                    # Nothing is lost, because the stream remains at its position, and the store is read again.
                    log = logger.debug if failing else logger.error
                    expected = isinstance(error, StoreError)
                    log("The stream %r could not be read; trying again: %s", stream.name, error, exc_info=not expected)
                    failing = stream.repair_again = True
                    await asyncio.sleep(RETRY_DELAY)
                    continue
                if stream.position != asked:
                    idle = 0
                elif stream.has_early or stream.repair_again:
                    # The store may lack an announced message for a short time, for example during a failover.
                    if idle == len(IDLE_DELAYS):
                        stream.drop_early()
                        self._listener.doubt(stream.name)
                        break
                    await asyncio.sleep(IDLE_DELAYS[idle])
                    idle += 1
                stream.repair_again = stream.repair_again or stream.has_early
        finally:
            stream.repair = None
            stream.drop_early()

    async def _read(self, stream: HubStream, asked: StreamPosition) -> None:
        page = await self._store.aread(
            stream.name, after=asked.offset, limit=PAGE_LENGTH, max_size=PAGE_SIZE, following=True
        )
        if went_back(asked, page) or page.epoch in stream.former_epochs:
            # Without a loss, the last offset of an epoch never decreases, and an epoch that has ended never returns.
            logger.error(
                "The store has lost messages of the stream %r: it was at %s and is at %s. A new epoch begins.",
                stream.name,
                asked,
                StreamPosition(page.epoch, page.tail),
            )
            await self._store.aforget(stream.name, epoch=page.epoch)
            stream.repair_again = True
            return
        if stream.position == NOWHERE:
            self._begin_epoch(stream, page)
        # The next message may be an early message that the store has already trimmed.
        stream.take_early()
        if stream.position != asked and _overtaken(stream.position, page):
            # The page contains nothing new, unless it has another epoch.
            stream.repair_again = stream.repair_again or page.epoch != stream.position.epoch
            return
        position = stream.position
        if advance(position, page).lost:
            # The messages that the page lacks may have been announced before the end of the read. So the repair waits
            # until these announcements have arrived.
            await self._listener.fence()
            stream.take_early()
            if stream.position != position:
                stream.repair_again = True
                return
        self._apply(stream, page)
        stream.lineage = page.lineage

    def _begin_epoch(self, stream: HubStream, page: StreamPage) -> None:
        """Set the epoch of a stream that has had no messages in this process, if the store now has an epoch for it.

        If the lineage has changed, so that the store may have lost data, an earlier epoch may have begun and ended
        unseen by this process. If the store has deleted the earlier messages of the stream, there certainly was such an
        epoch. In both cases, messages count as lost.
        """
        start = StreamPosition(page.epoch, 0)
        # If the control bus observes the stream, a possible loss is not reported. If it were reported, every restart of
        # Redis would make all clients reconnect, even if there were no control messages.
        unseen = is_later_epoch(page.epoch) or (page.low == 1 and stream.lineage not in ("", page.lineage))
        if stream.observer is None and unseen:
            stream.lose_beginning(start)
            self._data_lost()
        elif page.epoch:
            stream.begin_epoch(start)
        stream.lineage = page.lineage

    def _apply(self, stream: HubStream, page: StreamPage) -> None:
        """Deliver the entries of a page that follow the stream's position."""
        step = advance(stream.position, page)
        start = StreamPosition(step.position.epoch, step.position.offset - len(step.entries))
        if step.lost:
            stream.start_over(start)
            self._data_lost()
        elif stream.position != start:
            stream.begin_epoch(start)
        for entry in step.entries:
            stream.take(entry, page.epoch)
        stream.take_early()
        # The store must be read again if the page is not the last one. It must also be read again after a loss, because
        # the page may lack entries: it was read from an offset that is no longer valid.
        stream.repair_again = stream.repair_again or step.lost or not page.is_last


def _overtaken(position: StreamPosition, page: StreamPage) -> bool:
    """Return whether live messages have moved a stream beyond a page while the page was being read."""
    return page.epoch != position.epoch or page.tail < position.offset
