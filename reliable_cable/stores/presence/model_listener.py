"""The listener of the model store for presence. It finds the events of other processes by notifications and polls."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Final, Protocol

from reliable_cable.conf import CableSettings
from reliable_cable.logs import logger
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.bus import Bus
from reliable_cable.stores.streams.base import NOWHERE, Published, StreamEvent
from reliable_cable.stores.streams.model_announcer import Announcer
from reliable_cable.stores.streams.model_polling import Poll, PollingListener, SeenIds

from .base import PresenceEvent, PresenceListener, PresenceMissed
from .model_changes import Announcement
from .model_events import NewEvents

Deliver = Callable[[PresenceEvent | PresenceMissed], None]

#: The prefix of the names in wake-ups for presence. Wake-ups for messages have names without it. If the name of a
#: stream begins with the prefix, a process may be woken needlessly.
PREFIX: Final = "presence:"
#: The maximum number of calls of `ModelPresenceStore.prune` each time the listener prunes the store.
PRUNE_ROUNDS: Final = 100
#: How often, in seconds, a poll reads the positions of all streams, even if there is no event with a higher id.
COMPLETE_INTERVAL: Final = 1.0


class PresenceSource(Protocol):
    """The part of a presence store that the listener uses."""

    settings: CableSettings
    bus: Bus[StreamEvent]

    @property
    def origin(self) -> str:
        """The name of the store in this process, whose wake-ups are ignored."""

    def newest(self) -> int:
        """Return the highest id of an event of any stream; 0 if there is none."""

    def positions(self, streams: Collection[str]) -> dict[str, StreamPosition]:
        """Return the incarnation and the number of the newest event of streams. Streams without a row are left out."""

    def aread_events(self, positions: Mapping[str, StreamPosition]) -> Awaitable[dict[str, NewEvents]]:
        """Return the events of each stream after its position in `positions`. Leave out streams without a row."""

    def aend_incarnation(self, stream: str, incarnation: str) -> Awaitable[None]:
        """Begin a new incarnation of all streams, if the given stream still has the given incarnation."""

    def prune(self, *, limit: int) -> int:
        """Delete up to about `limit` old rows, and return their number."""


class _PolledPresence:
    """Offers presence to a `PollingListener`, as if the events of a stream were the messages of another stream.

    The name of that stream has the prefix `PREFIX`. Its epoch is the incarnation.

    While there are no new events, most polls read only one value, whatever the number of streams is. A poll that reads
    the positions of all streams follows within `COMPLETE_INTERVAL`. It finds changes of incarnations, and events whose
    ids are not the highest, because they became visible after an event with a higher id (on PostgreSQL).
    """

    def __init__(self, store: PresenceSource) -> None:
        self._store = store
        self.settings = store.settings
        #: The number of calls of `doubt`.
        self._doubts = 0
        #: The highest id of an event and the number of doubts before the last complete poll; None if there was none.
        self._polled: tuple[int, int] | None = None
        #: The time of the last complete poll, by the monotonic clock.
        self._polled_at = 0.0

    @property
    def origin(self) -> str:
        return self._store.origin

    def tails(self, streams: Collection[str]) -> dict[str, StreamPosition]:
        positions = self._store.positions([stream.removeprefix(PREFIX) for stream in streams])
        return {PREFIX + stream: position for stream, position in positions.items()}

    def doubt(self) -> None:
        """Make the next poll read the positions of all streams."""
        self._doubts += 1

    def poll(self, streams: Collection[str], seen: SeenIds) -> Poll:
        now = time.monotonic()
        state = (self._store.newest(), self._doubts)
        if seen.primed and state == self._polled and now < self._polled_at + COMPLETE_INTERVAL:
            return Poll({}, (), (), unchanged=True)
        with seen.lock:
            seen.add(())  # there are no transient messages
        tails = self.tails(streams)
        self._polled, self._polled_at = state, now
        return Poll(tails, (), ())

    def number_outbox(self, streams: Collection[str] | None = None) -> None:
        """Do nothing, because events are numbered in the transaction that inserts them."""

    def prune(self, *, limit: int) -> int:
        # Members may come and go faster than a single call deletes their events.
        total = 0
        for _ in range(PRUNE_ROUNDS):
            deleted = self._store.prune(limit=limit)
            total += deleted
            if deleted < limit:
                break
        return total


class ModelPresenceListener(PresenceListener):
    """Announces events of this process at once, and events of other processes after a notification or a poll.

    The events of a stream are announced in the order of their numbers, and each of them once. If a number is missing,
    the events are read from the database.

    Args:
        store: the store.
        deliver: a function that is called with each event.
        announcer: the object that sends and decodes notifications.
    """

    def __init__(self, store: PresenceSource, deliver: Deliver, announcer: Announcer) -> None:
        self._store = store
        self._deliver = deliver
        self._polled = _PolledPresence(store)
        self._polling = PollingListener(self._polled, store.bus, self._receive, announcer=announcer)
        #: The position of the last announced event of each stream.
        self._positions: dict[str, StreamPosition] = {}
        #: The streams whose events must be read, in the order in which this became known.
        self._stale: dict[str, None] = {}
        #: The streams that have had events while the listener was subscribing to them. These events may be newer than
        #: the position from which the listener begins.
        self._early: set[str] = set()
        self._reading: asyncio.Task[None] | None = None
        #: A future that is done when the streams in `_stale` have been read, or when the read has failed.
        self._next_read: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def subscribe(self, stream: str) -> None:
        """Start announcing the events of a stream."""
        await self.subscribe_many([stream])

    async def subscribe_many(self, streams: Collection[str]) -> None:
        """Start announcing the events of several streams, with one query.

        Raises:
            StoreError: the database could not be read. The listener has subscribed to no new stream.
        """
        await self._polling.subscribe_many([PREFIX + stream for stream in streams])
        for stream in streams:
            if PREFIX + stream in self._polling.streams:
                self._positions.setdefault(stream, self._polling.position(PREFIX + stream))
                if stream in self._early:
                    self._read_soon(stream)
        self._early.difference_update(streams)

    async def unsubscribe(self, stream: str) -> None:
        """Stop announcing the events of a stream."""
        self._positions.pop(stream, None)
        self._stale.pop(stream, None)
        await self._polling.unsubscribe(PREFIX + stream)
        self._early.discard(stream)

    async def fence(self, stream: str) -> None:
        """Read the stream's events now. If this fails, they are read after the next poll."""
        if stream in self._positions:
            self._read_soon(stream)
            # Later reads, which are caused by later events, are not awaited.
            await asyncio.wait([self._next_read])

    async def close(self) -> None:
        """Unsubscribe from all streams, and stop polling and reading."""
        self._positions.clear()
        self._stale.clear()
        self._early.clear()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
        self._end_waits(self._next_read)  # a task that is cancelled before it begins does not do this
        await self._polling.close()

    def _receive(self, event: StreamEvent) -> None:
        stream = event.stream.removeprefix(PREFIX)
        position = self._positions.get(stream)
        if position is None:
            self._early.add(stream)  # `subscribe_many` has not returned yet
            return
        if isinstance(event, Published) and self._reading is None:
            if event.epoch == position.epoch and event.entry.offset <= position.offset:
                return
            if event.entry.offset == position.offset + 1 and position.epoch in (event.epoch, ""):
                self._positions[stream] = event.position
                self._deliver(unpack(event).event)
                return
        self._read_soon(stream)

    def _read_soon(self, stream: str) -> None:
        """Read the events of a stream. If a read is running, they are read after it."""
        self._stale[stream] = None
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read_stale(), context=Context())

    async def _read_stale(self) -> None:
        """Read the events of all streams that need it, and announce them."""
        done = self._next_read
        try:
            while self._stale:
                stale, self._stale = self._stale, {}
                done, self._next_read = self._next_read, asyncio.get_running_loop().create_future()
                since = {stream: self._positions[stream] for stream in stale if stream in self._positions}
                try:
                    found = await self._store.aread_events(since)
                    await self._end_older(since, found)
                except Exception as error:
                    logger.debug("Presence events could not be read; trying again after the next poll: %s", error)
                    # The events of streams that have become stale during the read are missing, too.
                    doubted = {**since, **self._stale}
                    self._stale.clear()
                    for stream in doubted:
                        self._polling.doubt(PREFIX + stream)
                    self._polled.doubt()
                    return
                for stream, position in since.items():
                    # The position has changed if the listener unsubscribed from the stream during the read.
                    if self._positions.get(stream) == position:
                        self._take(stream, position, found.get(stream, NewEvents(NOWHERE, None)))
                done.set_result(None)
        finally:
            self._reading = None
            self._end_waits(done, self._next_read)

    def _end_waits(self, *reads: asyncio.Future[None]) -> None:
        """End the waits for reads that failed or will not begin."""
        for read in reads:
            if not read.done():
                read.set_result(None)
        self._next_read = asyncio.get_running_loop().create_future()

    async def _end_older(self, since: Mapping[str, StreamPosition], found: Mapping[str, NewEvents]) -> None:
        """If the database has fewer events than were announced, begin new incarnations, because data were lost.

        This happens if an SQLite file is replaced by a backup.
        """
        for stream, position in since.items():
            now = found[stream].position if stream in found else NOWHERE
            if now.epoch == position.epoch and now.offset < position.offset:
                await self._store.aend_incarnation(stream, now.epoch)

    def _take(self, stream: str, since: StreamPosition, found: NewEvents) -> None:
        if found.position == since:
            return
        self._positions[stream] = found.position
        events: Sequence[PresenceEvent | PresenceMissed]
        if found.events is None:
            events = [PresenceMissed(stream)]
        else:
            events = [announcement.event for announcement in found.events]
        for event in events:
            try:
                self._deliver(event)
            except Exception:
                logger.exception("A presence event of the stream %r could not be delivered.", stream)


def pack(announcement: Announcement) -> Published:
    """Return an announcement as an event of a stream, for the bus and the poller."""
    data = "\n".join([announcement.type, announcement.member, announcement.info])
    entry = Entry(announcement.number, data)
    return Published(PREFIX + announcement.stream, announcement.incarnation, entry)


def unpack(event: Published) -> Announcement:
    """Return the announcement in an event that `pack` has returned."""
    # JSON texts from `json.dumps` contain no line breaks.
    type_, member, info = event.entry.data.split("\n")
    return Announcement(
        event.stream.removeprefix(PREFIX),
        event.epoch,
        event.entry.offset,
        "join" if type_ == "join" else "leave",
        member,
        info,
    )
