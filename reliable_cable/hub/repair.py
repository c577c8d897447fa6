"""Repairs streams of the hub: reads messages that were announced out of order, or not at all, from the store.

Only a read of the store decides that messages are lost or that a stream has a new epoch. It is judged against the
position at which the read began, since live messages may overtake it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from reliable_cable.exceptions import StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage, advance, went_back
from reliable_cable.stores.streams.base import NOWHERE, StreamListener, StreamStore

from .history import PAGE_SIZE
from .stream import HubStream

logger = logging.getLogger("reliable_cable")

#: Seconds until a store that failed is asked again.
RETRY_DELAY: Final = 0.5
#: Seconds to wait after each read in a row that changed nothing. After the last of these waits, the repair ends.
IDLE_DELAYS: Final = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)


class Repairs:
    """Runs at most one repair for each stream of an event loop.

    Args:
        store: the stream store.
        listener: the store's listener for this event loop.
        lost: called when messages of a stream are missing for good.
    """

    def __init__(self, store: StreamStore, listener: StreamListener, lost: Callable[[], None]) -> None:
        self._store = store
        self._listener = listener
        self._lost = lost

    def request(self, found: HubStream) -> None:
        """Start a task that brings a stream to the store's position. A repair that is running reads once more."""
        found.again = True
        if found.repair is None:
            found.repair = asyncio.get_running_loop().create_task(self._run(found))

    async def finish(self, found: HubStream) -> None:
        """Request a repair and wait until it has ended."""
        self.request(found)
        if found.repair is not None:
            await asyncio.shield(found.repair)

    async def _run(self, found: HubStream) -> None:
        failing = False
        idle = 0
        try:
            while found.again and found.uses and found.position is not None:
                found.again = False
                asked = found.position
                try:
                    await self._read(found, asked)
                except Exception as error:
                    # Nothing is lost: the stream keeps its position, and the store is asked again.
                    log = logger.debug if failing else logger.error
                    expected = isinstance(error, StoreError)
                    log("The stream %r could not be read; trying again: %s", found.name, error, exc_info=not expected)
                    failing = found.again = True
                    await asyncio.sleep(RETRY_DELAY)
                    continue
                if found.position != asked:
                    idle = 0
                elif found.has_early or found.again:
                    # A message was announced that the store does not have (yet): it may be failing over.
                    if idle == len(IDLE_DELAYS):
                        found.drop_early()
                        self._listener.doubt(found.name)
                        break
                    await asyncio.sleep(IDLE_DELAYS[idle])
                    idle += 1
                found.again = found.again or found.has_early
        finally:
            found.repair = None
            found.drop_early()

    async def _read(self, found: HubStream, asked: StreamPosition) -> None:
        page = await self._store.aread(found.name, after=asked.offset, limit=PAGE_SIZE, following=True)
        if went_back(asked, page):
            logger.error(
                "The store has lost messages of the stream %r: it was at offset %d and is at %d. A new epoch begins.",
                found.name,
                asked.offset,
                page.tail,
            )
            await self._store.aforget(found.name, epoch=asked.epoch)
            found.again = True
            return
        if page.epoch and found.position == NOWHERE:
            found.learn(StreamPosition(page.epoch, 0))
        # An announced message may be the next one although the store has already trimmed it.
        found.send_early()
        if found.position is not None and found.position != asked and _overtaken(found.position, page):
            # All that the page has was delivered meanwhile, unless it is of another epoch.
            found.again = found.again or page.epoch != found.position.epoch
            return
        position = found.position
        if position is not None and advance(position, page).lost:
            # Events that were announced before the read's answer are delivered first: they may be the missing messages.
            await self._listener.fence()
            found.send_early()
            if found.position != position:
                found.again = True
                return
        self._apply(found, page)

    def _apply(self, found: HubStream, page: StreamPage) -> None:
        """Deliver the entries of a page that follow the stream's position."""
        if found.position is None:
            return
        step = advance(found.position, page)
        start = StreamPosition(step.position.epoch, step.position.offset - len(step.entries))
        if step.lost:
            found.move(start)
            self._lost()
        elif found.position != start:
            found.learn(start)
        for entry in step.entries:
            found.send(entry, page.epoch)
        found.send_early()
        # There is more to read if the page was full, or if it was read after an offset that is no longer valid.
        found.again = found.again or step.lost or len(page.entries) == PAGE_SIZE


def _overtaken(position: StreamPosition, page: StreamPage) -> bool:
    """Return whether live messages overtook a page while it was being read."""
    return page.epoch != position.epoch or page.tail < position.offset
