"""The listener of the model store, which polls the database for the messages of other processes."""

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from reliable_cable.concurrency.tasks import BackgroundTasks, cancel, wait_and_clear
from reliable_cable.concurrency.threads import run_store, run_store_write
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import CableError
from reliable_cable.logs import logger
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.bus import Bus, BusListener
from reliable_cable.stores.database.shared_receiver import SharedReceiver

from .base import NOWHERE, Advanced, Published, StreamEvent, StreamListener, Transient, moved
from .model_announcer import Announcer
from .model_notices import Moved, Notice, NoticedEvent, StoredTransient
from .model_unannounced import Unannounced
from .wakeup import receive_wakeups

#: How long, in seconds, polls look for rows with smaller ids after a row has become visible. Rows with smaller ids may
#: become visible later, because their transactions commit later.
MAX_ROW_DELAY = 5.0
#: How long, in seconds, a listener remembers the transient messages that it has announced.
ANNOUNCED_TIME = 60.0
#: The minimum time, in seconds, between two regular polls while notifications arrive.
SLOW_POLL_INTERVAL = 1.0
#: How long, in seconds, regular polls are frequent after a poll has found messages that were not announced, or messages
#: in the outbox. The process that stored them may be unable to send notifications.
UNANNOUNCED_TIME = 10.0
#: The maximum time, in seconds, until a poll that has failed is repeated.
RETRY_DELAY = 1.0
#: How often, in seconds, a listener prunes the store.
PRUNE_INTERVAL = 60.0
#: The approximate maximum number of rows that a listener deletes each time it prunes the store.
PRUNE_LIMIT = 500


class SeenIds:
    """Finds the new rows of a table, even if rows do not become visible in the order of their ids.

    After a backup was restored, the database may assign ids a second time. So a row is known by its id and its time.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.Lock()
        #: The next query can omit the rows that have both an id up to this number and a time up to `newest`.
        self.horizon = 0
        #: The time of the newest row, by the clock of the database.
        self.newest = 0.0
        self._clock = clock
        self._seen: dict[tuple[int, float], float] = {}
        #: Whether `add` has been called, and has recorded the rows that existed before the listener.
        self.primed = False

    @property
    def ids(self) -> list[int]:
        """The ids of the rows that were visible at the last call of `add`."""
        return [pk for pk, _ in self._seen]

    def add(self, rows: Collection[tuple[int, float]]) -> list[tuple[int, float]]:
        """Record visible rows, and return the new ones.

        The first call returns no rows, because the rows that it records are older than the listener.

        Args:
            rows: the id and the time of each row.
        """
        now = self._clock()
        new = [row for row in rows if row not in self._seen]
        # Forget rows that the query no longer returns. They are at or below the horizon, or were deleted, or a backup
        # of the database was restored.
        self._seen = {row: self._seen.get(row, now) for row in rows}
        old = [pk for (pk, _), since in self._seen.items() if since <= now - MAX_ROW_DELAY]
        self.horizon = min([max([self.horizon, *old]), *(pk - 1 for pk, _ in new)])
        self.newest = max([self.newest, *(created for _, created in rows)])
        if self.primed:
            return new
        self.primed = True
        return []


@dataclass(frozen=True, slots=True)
class Poll:
    """The result of a poll.

    Args:
        tails: the positions of the streams that exist.
        transients: the new transient messages of other processes.
        pending: the names of streams with messages in the outbox.
        unchanged: whether the positions were not read, because nothing shows that they changed since the last poll.
    """

    tails: Mapping[str, StreamPosition]
    transients: Sequence[StoredTransient]
    pending: Sequence[str]
    unchanged: bool = False


class PolledStore(Protocol):
    """The part of a store that `PollingListener` uses. The methods are called in store threads."""

    settings: CableSettings

    @property
    def origin(self) -> str:
        """The name of the store in this process. Polls skip transient messages of this origin."""

    def tails(self, streams: Collection[str]) -> dict[str, StreamPosition]:
        """Return the positions of streams, by name. Streams that do not exist are left out."""

    def poll(self, streams: Collection[str], seen: SeenIds) -> Poll:
        """Query the tables for the positions of streams, transient messages, and messages in the outbox.

        If `seen` is not primed before the call, the positions are always read, and `unchanged` is False.
        """

    def number_outbox(self, streams: Collection[str] | None = None) -> None:
        """Number the committed messages in the outbox."""

    def prune(self, *, limit: int) -> int:
        """Delete up to about `limit` old database rows, and return how many were deleted."""


class PollingListener(BusListener[StreamEvent], StreamListener):
    """Announces events of this process immediately, and events of other processes after a notification or a poll.

    The listener polls while it is subscribed to streams. A poll compares the tail of each stream with the newest
    announced position. It does not compare ids of rows, because rows may not become visible in the order of their ids.

    Args:
        store: the store to poll.
        bus: the bus on which the events of this process are published.
        deliver: a function that is called with each event.
        interval: a function that returns the time until the next poll, in seconds. The default is the setting
            `poll_interval`, or `SLOW_POLL_INTERVAL` if this is longer and notifications arrive.
        wakeups: whether the listener receives wake-ups from other processes over a channel layer.
        announcer: the object that sends and decodes notifications. If None, or if the database does not support
            notifications, the listener receives none.
    """

    def __init__(
        self,
        store: PolledStore,
        bus: Bus[StreamEvent],
        deliver: Callable[[StreamEvent], None],
        *,
        interval: Callable[[], float] | None = None,
        wakeups: bool = True,
        announcer: Announcer | None = None,
    ) -> None:
        super().__init__(bus, self._receive)
        self._interval = interval or self._regular_interval
        self._announcer = announcer
        self._notifications: SharedReceiver | None = None
        #: The times at which transient messages were announced, by the id of the message. Only messages of the last
        #: `ANNOUNCED_TIME` are included.
        self._announced: dict[int, float] = {}
        self._unannounced = Unannounced()
        #: The time until which regular polls are frequent, by the monotonic clock.
        self._frequent_until = 0.0
        self._wakeups = wakeups
        self._store = store
        self._deliver_event = deliver
        self._known: dict[str, StreamPosition] = {}
        self._seen = SeenIds()
        self._poller: asyncio.Task[None] | None = None
        #: The task that polls, and earlier ones that have not ended yet.
        self._tasks = BackgroundTasks()
        self._woken = asyncio.Event()
        #: The streams whose wake-up arrived during `subscribe`, before a poll could include them.
        self._woken_early: set[str] = set()
        self._failing = False

    async def subscribe(self, stream: str) -> None:
        """Start to announce the events of a stream.

        Raises:
            StoreError: the stream's position could not be read, so the listener has not subscribed to the stream.
        """
        await self.subscribe_many([stream])

    async def subscribe_many(self, streams: Collection[str]) -> None:
        """Start to announce the events of several streams. If this fails, the listener subscribes to no new stream."""
        new = [stream for stream in streams if stream not in self._known]
        if not new:
            return
        for stream in new:
            await super().subscribe(stream)
        try:
            tails = await self._first_tails(new)
        except BaseException:
            for stream in new:
                await self.unsubscribe(stream)
            raise
        for stream in self.streams.intersection(new):
            self._known[stream] = tails.get(stream, NOWHERE)
            if stream in self._woken_early:
                self._woken_early.discard(stream)
                self._woken.set()

    async def _first_tails(self, streams: Collection[str]) -> Mapping[str, StreamPosition]:
        """Return the positions of new streams. The first call also records the existing transient messages as seen."""
        if self._poller is None:
            self._seen = SeenIds()
            self._poller = self._tasks.spawn(self._keep_polling())
        if self._seen.primed:
            return await run_store(self._store.tails, streams)
        poll = await run_store(self._store.poll, streams, self._seen)
        # A late notification must not announce the messages from before the first subscription.
        self._announced |= dict.fromkeys(self._seen.ids, time.monotonic())
        self.push(self._new_transients(poll.transients))
        # A regular poll may have run meanwhile, without these streams.
        return await run_store(self._store.tails, streams) if poll.unchanged else poll.tails

    def position(self, stream: str) -> StreamPosition:
        """Return the position up to which a stream's messages were announced; `("", 0)` without a subscription."""
        return self._known.get(stream, NOWHERE)

    async def unsubscribe(self, stream: str) -> None:
        """Stop announcing the events of a stream."""
        self._known.pop(stream, None)
        self._unannounced.forget(stream)
        self._woken_early.discard(stream)
        await super().unsubscribe(stream)

    async def close(self) -> None:
        """Unsubscribe from all streams and stop polling."""
        await super().close()
        await cancel(*self._tasks.pending)

    def doubt(self, stream: str) -> None:
        """Make the next poll announce `Advanced` for a stream, if the stream exists."""
        if stream in self._known:
            self._known[stream] = NOWHERE

    def note(self, event: StreamEvent) -> bool:
        """Record an event that the caller is about to announce. Return False if it was announced before."""
        known = self._known.get(event.stream)
        if isinstance(event, Published) and known is not None:
            offset = event.entry.offset
            if event.epoch == known.epoch and offset <= known.offset:
                return False
            if offset == known.offset + 1 and known.epoch in (event.epoch, ""):
                self._known[event.stream] = event.position
        return True

    def _receive(self, event: StreamEvent) -> None:
        self.note(event)
        self._unannounced.hear(event)
        self._deliver_event(event)

    async def _keep_polling(self) -> None:
        receivers = [
            asyncio.create_task(self._receive_wakeups(), name="cable-wakeup-receiver"),
            asyncio.create_task(self._receive_notifications(), name="cable-notification-receiver"),
        ]
        prune_at = time.monotonic() + PRUNE_INTERVAL * random.uniform(0.5, 1)  # noqa: S311 - not all at once
        try:
            while self.streams:
                interval = self._interval()
                await wait_and_clear(self._woken, min(interval, RETRY_DELAY) if self._failing else interval)
                await self._attempt(self._poll)
                if time.monotonic() >= prune_at:
                    prune_at = time.monotonic() + PRUNE_INTERVAL
                    await self._attempt(partial(run_store_write, partial(self._store.prune, limit=PRUNE_LIMIT)))
        finally:
            self._poller = None
            await cancel(*receivers)

    # -- wake-ups and notifications -----------------------------------------------------------------------------------

    async def _receive_wakeups(self) -> None:
        if self._wakeups:
            await receive_wakeups(self._store.origin, self._wake, lambda: self._wake(self.streams))

    def _wake(self, streams: Iterable[str]) -> None:
        if self._notified:
            return
        served = self.streams.intersection(streams)
        if served:
            self._woken_early |= served - self._known.keys()
            self._woken.set()

    @property
    def _notified(self) -> bool:
        """Whether notifications arrive. If so, polls are only needed for messages whose notification was lost."""
        return self._notifications is not None and self._notifications.working

    def _regular_interval(self) -> float:
        interval = self._store.settings.poll_interval
        if self._notified and time.monotonic() >= self._frequent_until:
            return max(interval, SLOW_POLL_INTERVAL)
        return interval

    async def _receive_notifications(self) -> None:
        announcer = self._announcer
        if announcer is not None and announcer.notifies:
            self._notifications = SharedReceiver(
                self._store.settings,
                announcer.topic,
                lambda payload: self._receive_notice(announcer.decode(payload)),
                self._woken.set,
                announcer.probe,
            )
            await self._notifications.run()

    def _receive_notice(self, notice: Notice) -> None:
        if notice.look:
            self._woken.set()
        for event in notice.events:
            if event.stream in self.streams:
                self._unannounced.hear(event)
        if notice.origin != self._store.origin:
            self.push([new for event in notice.events if (new := self._new_event(event)) is not None])

    def _new_event(self, event: NoticedEvent) -> StreamEvent | None:
        """Return the event to announce after a notification.

        Returns:
            None if the event was announced before, or if the listener is not subscribed to its stream.
        """
        if event.stream not in self.streams:
            return None
        match event:
            case StoredTransient(_, Transient(stream) as message):
                # While `subscribe_many` is running, the message may be from before the subscription.
                return message if stream in self._known and self._new_transients([event]) else None
            case Moved(stream, position):
                known = self._known.get(stream)
                if known is not None and known.epoch in (position.epoch, ""):
                    if position.offset <= known.offset:
                        return None
                    self._known[stream] = position
                return Advanced(stream)
            case _:
                return event if self.note(event) else None

    def _new_transients(self, transients: Sequence[StoredTransient]) -> list[Transient]:
        """Return the messages that were not announced before, neither after a poll nor after a notification."""
        now = time.monotonic()
        while self._announced and next(iter(self._announced.values())) < now - ANNOUNCED_TIME:
            del self._announced[next(iter(self._announced))]
        new = [each for each in transients if each.pk not in self._announced]
        self._announced.update((each.pk, now) for each in new)
        return [each.message for each in new]

    # -- polls --------------------------------------------------------------------------------------------------------

    async def _attempt(self, step: Callable[[], Awaitable[object]]) -> None:
        try:
            await step()
        except Exception as error:
            if not self._failing:
                # Each outage is logged only once. Unexpected errors are logged with their traceback.
                logger.error(
                    "The database cannot be polled for new messages; trying again: %s",
                    error,
                    exc_info=not isinstance(error, CableError),
                )
            self._failing = True
        else:
            if self._failing:
                logger.info("The database can be polled for new messages again.")
            self._failing = False

    async def _poll(self) -> None:
        if self._unannounced.check():
            self._frequent_until = time.monotonic() + UNANNOUNCED_TIME
        before = dict(self._known)
        poll = await run_store(self._store.poll, list(before), self._seen)
        events: list[StreamEvent] = list(self._new_transients(poll.transients))
        for stream, was in before.items() if not poll.unchanged else ():
            now = self._known.get(stream)
            tail = poll.tails.get(stream, NOWHERE)
            doubted = now == NOWHERE != was and tail != NOWHERE  # `doubt` was called during the poll
            if now is not None and (doubted or moved(was, now, tail)):
                self._known[stream] = tail
                events.append(Advanced(stream))
                if self._notified:
                    self._unannounced.find(stream, tail)
        self.push(events)
        if poll.pending:
            # The process that has stored these messages may be unable to number them.
            self._frequent_until = time.monotonic() + UNANNOUNCED_TIME
            await run_store_write(partial(self._store.number_outbox, poll.pending))
