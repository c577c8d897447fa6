"""A listener that also finds what other processes wrote to the same database: it polls while it has subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from reliable_cable.concurrency.threads import run_store, run_store_write
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import CableError
from reliable_cable.protocol.positions import StreamPosition

from .base import NOWHERE, Advanced, Published, StreamEvent, Transient, moved
from .bus import Bus, BusListener
from .wakeup import hear_wakeups

logger = logging.getLogger("reliable_cable")

#: Seconds for which a row may become visible after one with a greater id and still be found.
SETTLE_TIME = 5.0
#: Seconds between a listener's rounds of pruning, and how much goes in one.
PRUNE_INTERVAL = 60.0
PRUNE_LIMIT = 500


class SeenIds:
    """Tells new rows of a table from those seen before, though rows become visible out of id order.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.Lock()
        #: Rows up to this id need not be looked at any more.
        self.horizon = 0
        self._clock = clock
        self._seen: dict[int, float] = {}
        self._primed = False

    def add(self, ids: Iterable[int]) -> list[int]:
        """Take the ids that are visible beyond the horizon; return the new ones (at first none: they were before)."""
        now = self._clock()
        fresh = [pk for pk in ids if pk not in self._seen]
        settled = [pk for pk, since in self._seen.items() if since <= now - SETTLE_TIME]
        self._seen.update(dict.fromkeys(fresh, now))
        if settled:
            self.horizon = max(settled)
            self._seen = {pk: since for pk, since in self._seen.items() if pk > self.horizon}
        if self._primed:
            return fresh
        self._primed = True
        return []


@dataclass(frozen=True, slots=True)
class Poll:
    """What one look at the tables found.

    Args:
        tails: the newest position of each stream that has one.
        transients: messages without a position that other processes sent.
        waiting: streams with messages to be numbered.
    """

    tails: Mapping[str, StreamPosition]
    transients: Sequence[Transient]
    waiting: Sequence[str]


class PolledStore(Protocol):
    """What a polling listener needs of its store; the methods are called in the store threads."""

    settings: CableSettings

    @property
    def origin(self) -> str:
        """Name this process's store: what it wrote itself was announced already."""

    def poll(self, streams: Collection[str], seen: SeenIds) -> Poll:
        """Look at the tables."""

    def number_outbox(self, streams: Collection[str] | None = None) -> None:
        """Number the messages that wait."""

    def prune(self, *, limit: int) -> int:
        """Delete what is past its time."""


class PollingListener(BusListener):
    """Announces this process's events at once, other processes' after a poll or a wake-up.

    A poll compares each stream's tail with what this listener knows of it, never a global id, so that no order in which
    transactions become visible can hide a message.

    Args:
        store: whose tables are polled.
        bus: brings this process's events.
        deliver: takes the events.
        interval: returns the seconds until the next poll; None: the setting `poll_interval`.
        wakeups: whether other processes' wake-ups over a channel layer are heard.
    """

    def __init__(
        self,
        store: PolledStore,
        bus: Bus,
        deliver: Callable[[StreamEvent], None],
        *,
        interval: Callable[[], float] | None = None,
        wakeups: bool = True,
    ) -> None:
        super().__init__(bus, self._heard)
        self._interval = interval or (lambda: store.settings.poll_interval)
        self._wakeups = wakeups
        self._store = store
        self._hand_over = deliver
        self._known: dict[str, StreamPosition] = {}
        self._seen = SeenIds()
        self._poller: asyncio.Task[None] | None = None
        #: The poller, and former ones that are still cleaning up.
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        #: Streams whose wake-up came while they were being subscribed to, so that a poll could not know them yet.
        self._woken_early: set[str] = set()
        self._failing = False

    async def subscribe(self, stream: str) -> None:
        """Announce this stream's events from now on.

        Raises:
            StoreError: the stream's position could not be read; it is not subscribed to.
        """
        if stream in self._known:
            return
        await super().subscribe(stream)
        if self._poller is None:
            self._seen = SeenIds()
            self._poller = asyncio.create_task(self._keep_polling(), name="cable-poller")
            self._tasks.add(self._poller)
            self._poller.add_done_callback(self._tasks.discard)
        try:
            found = await run_store(self._store.poll, [stream], self._seen)
        except BaseException:
            await self.unsubscribe(stream)
            raise
        if stream in self._streams:
            self._known[stream] = found.tails.get(stream, NOWHERE)
            if stream in self._woken_early:
                self._woken_early.discard(stream)
                self._woken.set()
        self.push(found.transients)

    async def unsubscribe(self, stream: str) -> None:
        """Announce this stream's events no more."""
        self._known.pop(stream, None)
        self._woken_early.discard(stream)
        await super().unsubscribe(stream)

    async def close(self) -> None:
        """Leave the bus and stop polling."""
        await super().close()
        if self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(set(self._tasks))

    def doubt(self, stream: str) -> None:
        """Announce `Advanced` for this stream at the next poll, unless the stream does not exist."""
        if stream in self._known:
            self._known[stream] = NOWHERE

    def note(self, event: StreamEvent) -> bool:
        """Record an event that is announced in another way; return False if it was announced before."""
        known = self._known.get(event.stream)
        if isinstance(event, Published) and known is not None:
            if event.epoch == known.epoch and event.offset <= known.offset:
                return False
            if event.offset == known.offset + 1 and known.epoch in (event.epoch, ""):
                self._known[event.stream] = StreamPosition(event.epoch, event.offset)
        return True

    def _heard(self, event: StreamEvent) -> None:
        self.note(event)
        self._hand_over(event)

    async def _keep_polling(self) -> None:
        ear = asyncio.create_task(self._hear_wakeups(), name="cable-wakeup-ear")
        prune_at = time.monotonic() + PRUNE_INTERVAL * random.uniform(0.5, 1)  # noqa: S311 - spreads the servers
        try:
            while self._streams:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval()):
                        await self._woken.wait()
                self._woken.clear()
                await self._attempt(self._poll)
                if time.monotonic() >= prune_at:
                    prune_at = time.monotonic() + PRUNE_INTERVAL
                    await self._attempt(self._prune)
        finally:
            self._poller = None
            ear.cancel()
            await asyncio.wait([ear])

    async def _hear_wakeups(self) -> None:
        if self._wakeups:
            await hear_wakeups(self._store.origin, self._wake, lambda: self._wake(self._streams))

    def _wake(self, streams: Iterable[str]) -> None:
        served = self._streams.intersection(streams)
        if served:
            self._woken_early |= served - self._known.keys()
            self._woken.set()

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except Exception as error:
            if not self._failing:
                # One line an outage; what is not known to happen comes with its traceback.
                logger.error("Streams cannot be polled: %s", error, exc_info=not isinstance(error, CableError))
            self._failing = True
        else:
            if self._failing:
                logger.info("Streams are polled again.")
            self._failing = False

    async def _prune(self) -> None:
        await run_store_write(partial(self._store.prune, limit=PRUNE_LIMIT))

    async def _poll(self) -> None:
        before = dict(self._known)
        found = await run_store(self._store.poll, list(before), self._seen)
        events: list[StreamEvent] = list(found.transients)
        for stream, was in before.items():
            now = self._known.get(stream)
            tail = found.tails.get(stream, NOWHERE)
            if now is not None and moved(was, now, tail):
                self._known[stream] = tail
                events.append(Advanced(stream))
        self.push(events)
        if found.waiting:
            await run_store_write(partial(self._store.number_outbox, found.waiting))
