"""Presence for Django code, and what keeps this process's members present."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from django.dispatch import Signal

from reliable_cable.engine import get_engine
from reliable_cable.signals import presence_joined, presence_left
from reliable_cable.threads import run_handler

from .base import PresenceEvent, PresenceInfo, PresenceStore

logger = logging.getLogger("reliable_cable")

#: How often a member is refreshed within its time to live: two rounds may fail.
ROUNDS_PER_TTL: Final = 3

#: Rounds after the last member was let go: one time to live, and one round more for whatever clocks disagree about.
LAST_ROUNDS: Final = ROUNDS_PER_TTL + 2

#: Events that may wait for slow receivers of the signals.
MAX_PENDING_SIGNALS: Final = 10_000


class StreamPresence:
    """Who is in one stream; made by `presence_for`."""

    __slots__ = ("_store", "stream")

    def __init__(self, stream: str, store: PresenceStore) -> None:
        self.stream = stream
        self._store = store

    def info(self, *, records: bool = True) -> PresenceInfo:
        """Return who is there, or only how many (`records=False`)."""
        return self._store.info(self.stream, records=records)

    def total(self) -> int:
        """Return how many ids are there."""
        return self._store.info(self.stream, records=False).total

    async def ainfo(self, *, records: bool = True) -> PresenceInfo:
        """Async twin of `info`."""
        return await self._store.ainfo(self.stream, records=records)

    async def atotal(self) -> int:
        """Async twin of `total`."""
        return (await self._store.ainfo(self.stream, records=False)).total


def presence_for(stream: str) -> StreamPresence:
    """Return who is in a stream: `presence_for("chat:1").total()`.

    With the embedded engine, that is who is connected to this process.
    """
    return StreamPresence(stream, get_engine().presence)


class PresenceService:
    """Refreshes the sessions that live connections hold, expires those of dead ones, and sends the signals.

    Used from one event loop. It starts with the first `hold`; its task runs only while there is something to keep or
    still to expire.

    Args:
        store: where the sessions are.
        sleep: waits between two rounds; takes seconds.
    """

    def __init__(self, store: PresenceStore, *, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        self.store = store
        self._sleep = sleep
        self._held: set[tuple[str, str]] = set()
        self._rounds_left = 0
        self._rounds: asyncio.Task[None] | None = None
        self._unlisten: Callable[[], None] | None = None
        self._stopped = False
        self._signals: deque[PresenceEvent] = deque()
        self._sending: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether rounds are being made."""
        return self._rounds is not None

    def start(self) -> None:
        """Listen for the events that the signals announce; done by the first `hold` as well."""
        self._stopped = False
        if self._unlisten is None:
            self._unlisten = self.store.listen(self._announce)

    async def stop(self) -> None:
        """Make no more rounds and send no more signals; the members stay for the rest of their time."""
        self._stopped = True
        self._held.clear()
        self._signals.clear()
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
        tasks = [task for task in (self._rounds, self._sending) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that was cancelled before it ran has not said so itself.
        self._rounds = self._sending = None

    def hold(self, stream: str, session: str) -> None:
        """Keep a session present from now on; nothing happens after `stop`."""
        if not self._stopped:
            self._held.add((stream, session))
            self._run_rounds()

    def release(self, stream: str, session: str) -> None:
        """Keep a session no longer: it leaves when its time is over, unless it has left before."""
        if (stream, session) in self._held:
            self._held.remove((stream, session))
            self._run_rounds()

    async def round(self) -> None:
        """Refresh what is held, all at once, then expire what is over; an error is logged, and the next round tries."""
        try:
            if self._held:
                await self.store.arefresh(tuple(self._held))
            await self.store.aexpire()
        except Exception:
            logger.exception("Presence could not be refreshed.")

    def _run_rounds(self) -> None:
        self._rounds_left = LAST_ROUNDS
        if self._rounds is None:
            self.start()
            self._rounds = asyncio.get_running_loop().create_task(self._make_rounds())

    async def _make_rounds(self) -> None:
        try:
            while self._held or self._rounds_left:
                await self._sleep(self.store.settings.presence_ttl / ROUNDS_PER_TTL)
                await self.round()
                if not self._held:
                    self._rounds_left -= 1
        finally:
            self._rounds = None

    def _announce(self, event: PresenceEvent) -> None:
        if not self._signal(event).has_listeners(type(self.store)):
            return
        if len(self._signals) >= MAX_PENDING_SIGNALS:
            logger.error("The receivers of the presence signals are too slow; %r is not announced.", event)
            return
        self._signals.append(event)
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_signals())

    async def _send_signals(self) -> None:
        try:
            while self._signals:
                await run_handler(self._send_signal, self._signals.popleft())
        finally:
            self._sending = None

    def _send_signal(self, event: PresenceEvent) -> None:
        self._signal(event).send_robust(type(self.store), stream=event.stream, id=event.id, info=event.info)

    @staticmethod
    def _signal(event: PresenceEvent) -> Signal:
        return presence_joined if event.type == "join" else presence_left
