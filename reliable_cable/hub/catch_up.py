"""Sends the missed entries of a stream to a subscriber that is catching up, one page after another."""

import asyncio
from typing import Final

from reliable_cable.logs import logger
from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Step, StreamPage, advance

from .history import HistoryReader
from .repair import Repairs
from .stream import HubStream
from .subscriber import Subscriber, SubscriberGroup, SubscriberState

#: The maximum number of characters of entries that are written to a connection at once.
WRITE_SIZE: Final = 64 * 1024

#: The delays, in seconds, before a page that does not match its stream is read again. The stream is repaired before
#: each delay. If the page still does not match after the last delay, entries count as lost.
RETRY_DELAYS: Final = (0.0, 0.05, 0.2, 0.5)


class CatchUp:
    """Sends pages of entries to the subscribers of an event loop that are catching up.

    Args:
        history: the reader that reads and encodes the entries.
        repairs: the object that repairs the streams of the event loop.
        max_pending_size: the setting `MAX_PENDING_SIZE`, in characters.
    """

    def __init__(self, history: HistoryReader, repairs: Repairs, max_pending_size: int) -> None:
        self._history = history
        self._repairs = repairs
        # If entries alone could fill the queue of frames, the client would be disconnected as too slow.
        self._write_size = min(WRITE_SIZE, max_pending_size // 2)

    async def send_page(self, stream: HubStream, subscriber: Subscriber, page: StreamPage | None = None) -> bool:
        """Send a page of entries after the subscriber's cursor, and wait until the socket has accepted the page.

        Args:
            stream: the stream of the subscriber.
            subscriber: a subscriber that is catching up.
            page: the page after the cursor. By default, it is read from the store.

        Returns:
            False if entries are lost. The cursor is then set to the position of the stream.

        Raises:
            StoreError: the store cannot be read.
        """
        # Only one subscriber of a connection reads at a time, so that no client has more than one page in memory.
        async with subscriber.outbox.reading:
            await subscriber.outbox.drained()
            if subscriber.state is not SubscriberState.CATCHING_UP:
                return True
            page = await self._matching_page(stream, subscriber, page)
            if subscriber.state is not SubscriberState.CATCHING_UP:
                return True
            step = None if page is None else advance(subscriber.cursor, page, upto=stream.position.offset)
            if page is None or step is None or step.lost:
                subscriber.cursor = stream.position
                return False
            await self._write(stream, subscriber, step)
            return True

    async def _matching_page(
        self, stream: HubStream, subscriber: Subscriber, page: StreamPage | None
    ) -> StreamPage | None:
        """Return a page that continues at the cursor; None if several attempts find no such page.

        The result is also None if the subscriber is no longer catching up. The hub may not yet know about a new epoch,
        or about messages that the client has received from another server. So the stream is repaired before each
        further attempt.
        """
        for delay in (None, *RETRY_DELAYS):
            if delay is not None:
                await self._repairs.finish(stream)
                await asyncio.sleep(delay)
                page = None
            if subscriber.state is not SubscriberState.CATCHING_UP:
                return None
            # The position is copied before the read, because the page may lack messages that the hub delivers during
            # the read.
            asked = stream.position
            if page is None:
                page = await self._history.read(stream.name, subscriber.cursor, asked, following=True)
            if _agree(subscriber.cursor, page, asked) and page.epoch == stream.position.epoch:
                return page
        logger.warning("A subscriber of the stream %r could not catch up. Its client is told of a loss.", stream.name)
        return None

    async def _write(self, stream: HubStream, subscriber: Subscriber, step: Step) -> None:
        """Write the new entries of a page in pieces. After each piece, move the cursor and wait for the socket."""
        epoch = step.position.epoch
        group = stream.group(subscriber)
        if self._write_block(group, stream.name, subscriber, step):
            return
        piece: list[Frame] = []
        size = 0
        for entry in step.entries:
            if entry.exclude and entry.exclude in subscriber.sids:
                continue
            frame = self._history.encode(group, stream.name, epoch, entry)
            if piece and size + len(frame) > self._write_size:
                subscriber.outbox.push_all(piece)
                subscriber.cursor = StreamPosition(epoch, entry.offset - 1)
                piece, size = [], 0
                await subscriber.outbox.drained()
                if subscriber.state is not SubscriberState.CATCHING_UP:
                    return
            piece.append(frame)
            size += len(frame)
        subscriber.outbox.push_all(piece)
        subscriber.cursor = step.position
        if step.entries and step.entries[-1].exclude in subscriber.sids:
            subscriber.outbox.send_positions()
        await subscriber.outbox.drained()

    def _write_block(self, group: SubscriberGroup, stream: str, subscriber: Subscriber, step: Step) -> bool:
        """Write all entries as one block that several subscribers share. Return False if this is not possible."""
        write = subscriber.outbox.ready
        excluded = {entry.exclude for entry in step.entries if entry.exclude}
        if write is None or not excluded.isdisjoint(subscriber.sids):
            return False
        block = self._history.block(group, stream, step.position.epoch, step.entries, self._write_size)
        if block is None:
            return False
        try:
            write(block)
        except Exception:
            subscriber.outbox.failed()
        subscriber.cursor = step.position
        return True


def _agree(cursor: StreamPosition, page: StreamPage, stream: StreamPosition) -> bool:
    """Return whether a page matches a subscriber and its stream, so that the page can be sent.

    A page does not match if it has another epoch than the stream, or if it lacks messages that the hub has delivered.
    It also does not match if the client has received messages from another server that this hub has not delivered yet.

    Args:
        cursor: the subscriber's cursor.
        page: the page after the cursor.
        stream: the position of the stream when the read began.
    """
    ahead = cursor.epoch == page.epoch and cursor.offset > stream.offset
    return page.epoch == stream.epoch and page.tail >= stream.offset and not ahead
