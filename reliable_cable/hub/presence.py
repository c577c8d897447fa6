"""Presence for Django code, and what keeps this process's members present."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from django.dispatch import Signal

from reliable_cable.concurrency.threads import run_handler
from reliable_cable.exceptions import StoreError
from reliable_cable.signals import presence_joined, presence_left
from reliable_cable.stores.presence.base import Member, PresenceEvent, PresenceStore

from .rosters import PresenceLists

logger = logging.getLogger("reliable_cable")

#: How often a member is refreshed within its time to live: two rounds may fail.
ROUNDS_PER_TTL: Final = 3

#: The longest time, in seconds, between rounds while the store cannot be reached.
RETRY_DELAY: Final = 1.0

#: Rounds after the last member was let go: one time to live, and one round more for whatever clocks disagree about.
LAST_ROUNDS: Final = ROUNDS_PER_TTL + 2

#: Members that are joined again in one call.
REJOIN_SIZE: Final = 1000

#: Events that may wait for slow receivers of the signals.
MAX_PENDING_SIGNALS: Final = 10_000


@dataclass(slots=True)
class _Held:
    """A session of this process; `pending`: its latest join is not known to be in the store."""

    member: Member
    pending: bool = True


def _ignore(stream: str, message: str) -> None:
    """Take a message for nobody."""


class PresenceService:
    """Keeps the sessions of live connections present, removes those of dead ones, and sends the signals.

    Used from one event loop. Its rounds run while there is something to keep or to watch, or still to expire. After a
    failure of the store, the next round follows soon, and repeats failed joins.

    Args:
        store: where the sessions are.
        send: takes a stream and a presence message for all of its clients here.
        sleep: waits between two rounds; takes seconds.
    """

    def __init__(
        self,
        store: PresenceStore,
        send: Callable[[str, str], None] = _ignore,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.store = store
        self.lists = PresenceLists(store, send)
        self._sleep = sleep
        self._held: dict[tuple[str, str], _Held] = {}
        self._served: set[str] = set()
        #: Joins that are under way, and the sessions that left meanwhile.
        self._joining = 0
        self._left: set[tuple[str, str]] = set()
        self._rounds_left = 0
        self._failing = False
        self._rounds: asyncio.Task[None] | None = None
        self._stopped = False
        self._signals: deque[PresenceEvent] = deque()
        self._sending: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether rounds are being made."""
        return self._rounds is not None

    async def stop(self) -> None:
        """Make no more rounds; the members stay for the rest of their time. Signals that are due are sent."""
        self._stopped = True
        self._held.clear()
        self._served.clear()
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.wait([self._rounds])
        # A task that was cancelled before it ran has not said so itself.
        self._rounds = None
        await self.lists.close()
        if self._sending is not None:
            await asyncio.wait([self._sending])

    # -- streams ------------------------------------------------------------------------------------------------------

    async def open(self, stream: str) -> None:
        """Let a stream's clients here hear who comes and leaves, also who leaves because its server died."""
        await self.lists.subscribe(stream)
        if not self._stopped:
            self._served.add(stream)
            self._run_rounds()

    async def close(self, stream: str) -> None:
        """A stream has no clients here any more."""
        self._served.discard(stream)
        await self.lists.unsubscribe(stream)

    # -- sessions -----------------------------------------------------------------------------------------------------

    async def join(self, stream: str, session: str, id_: str, info: Any) -> None:
        """Join a session, or update it, and keep it present; if the store fails it is joined by a round."""
        if self._stopped:
            return
        former = self._held.get((stream, session))
        joined = former is not None and former.member.joined and former.member.id == id_
        held = self._held[stream, session] = _Held(Member(stream, session, id_, info, joined))
        self._run_rounds()
        try:
            await self._join_all([held])
        except StoreError as error:
            self._failed(error)

    async def leave(self, stream: str, session: str) -> None:
        """Let a session leave.

        Raises:
            StoreError: it leaves when its time is over.
        """
        self.release(stream, session)
        if self._joining:
            self._left.add((stream, session))
        self._announce(await self.store.aleave(stream, session))

    def release(self, stream: str, session: str) -> None:
        """Keep a session no longer: it leaves when its time is over, unless it has left before."""
        if self._held.pop((stream, session), None) is not None:
            self._run_rounds()

    # -- rounds -------------------------------------------------------------------------------------------------------

    async def round(self) -> None:
        """Refresh what is held, all at once, join again what is lost, and remove what is over, whoever held it."""
        try:
            held: dict[str, list[str]] = {stream: [] for stream in self.lists.streams}
            for stream, session in self._held:
                held.setdefault(stream, []).append(session)
            if held:
                refreshed = await self.store.arefresh(held)
                await self._join_again(refreshed.unknown)
                self.lists.check(refreshed.incarnations)
            self._announce(await self.store.aexpire())
        except Exception as error:
            self._failed(error)
        else:
            if self._failing:
                self._failing = False
                logger.info("Presence is refreshed again.")

    def _failed(self, error: Exception) -> None:
        log = logger.debug if self._failing else logger.error
        self._failing = True
        log("Presence could not be refreshed; trying again every %.1f s.", self._delay, exc_info=error)

    async def _join_again(self, unknown: Iterable[tuple[str, str]]) -> None:
        """Join what the store does not know, and what it may not know."""
        keys = dict.fromkeys([*unknown, *(key for key, held in self._held.items() if held.pending)])
        lost = [self._held[key] for key in keys if key in self._held]
        for start in range(0, len(lost), REJOIN_SIZE):
            batch = [held for held in lost[start : start + REJOIN_SIZE] if self._current(held) is held]
            await self._join_all(batch)

    async def _join_all(self, batch: Sequence[_Held]) -> None:
        self._joining += 1
        try:
            self._announce(await self.store.ajoin_all([held.member for held in batch]))
            for held in batch:
                held.member = replace(held.member, joined=True)
                held.pending = False
            for held in batch:
                # What was asked for meanwhile may have been done before.
                current = self._current(held)
                if current is None and (held.member.stream, held.member.session) in self._left:
                    self._announce(await self.store.aleave(held.member.stream, held.member.session))
                elif current is not None and current is not held:
                    self._announce(await self.store.ajoin_all([current.member]))
        finally:
            self._joining -= 1
            if not self._joining:
                self._left.clear()

    def _current(self, held: _Held) -> _Held | None:
        """Return what is held of a session now."""
        return self._held.get((held.member.stream, held.member.session))

    def _run_rounds(self) -> None:
        self._rounds_left = LAST_ROUNDS
        if self._rounds is None and not self._stopped:
            self._rounds = asyncio.get_running_loop().create_task(self._make_rounds())

    @property
    def _delay(self) -> float:
        """The seconds until the next round; at most `RETRY_DELAY` while the store cannot be reached."""
        interval = self.store.settings.presence_ttl / ROUNDS_PER_TTL
        return min(interval, RETRY_DELAY) if self._failing else interval

    async def _make_rounds(self) -> None:
        try:
            while self._held or self._served or self._rounds_left:
                await self._sleep(self._delay)
                await self.round()
                if not (self._held or self._served or self._failing):
                    self._rounds_left -= 1
        finally:
            self._rounds = None

    # -- signals ------------------------------------------------------------------------------------------------------

    def _announce(self, events: Iterable[PresenceEvent]) -> None:
        """Send the signals of what calls of this process brought about."""
        for event in events:
            if not self._signal(event).has_listeners(type(self.store)):
                continue
            if len(self._signals) >= MAX_PENDING_SIGNALS:
                logger.error("The receivers of the presence signals are too slow; %r is not announced.", event)
                continue
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
