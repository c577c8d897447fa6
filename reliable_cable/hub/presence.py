"""Adds the members of an event loop's connections to the presence store, refreshes them, and sends presence signals."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Final

from django.dispatch import Signal

from reliable_cable.concurrency.retrying import BACKGROUND_RETRY_DELAY
from reliable_cable.concurrency.tasks import cancel
from reliable_cable.concurrency.threads import run_handler
from reliable_cable.exceptions import StoreError
from reliable_cable.logs import logger
from reliable_cable.namespaces import split_namespace, use_namespace
from reliable_cable.signals import presence_joined, presence_left
from reliable_cable.stores.presence.base import SEARCH_INTERVAL, Member, PresenceEvent, PresenceStore

from .rosters import Rosters

#: The number of rounds in the time to live of a member. If two of them fail, the member still does not expire.
ROUNDS_PER_TTL: Final = 3

#: The number of rounds that are made after the last member was released. These rounds cover the member's time to live,
#: so that one of them removes the expired member. Two more rounds are added, because clocks may differ.
LAST_ROUNDS: Final = ROUNDS_PER_TTL + 2

#: The time, in seconds, between two sweeps, which remove expired members after a client has closed its web page.
SWEEP_INTERVAL: Final = 1.0

#: How long, in seconds, sweeps continue after `PRESENCE_GRACE`, because the clock of the store may differ, and because
#: a store may omit a sweep if another process has just made one.
SWEEP_MARGIN: Final = SEARCH_INTERVAL + 0.1

#: The maximum number of members that join again in one call to the store.
REJOIN_SIZE: Final = 1000

#: The maximum number of queued signals. If the receivers are so slow that more are pending, new signals are dropped.
MAX_PENDING_SIGNALS: Final = 10_000


@dataclass(slots=True)
class _LocalMember:
    """A member that this process keeps present. If `pending` is True, the store may not have the member's last join."""

    member: Member
    pending: bool = True

    @property
    def key(self) -> tuple[str, str]:
        return self.member.stream, self.member.session


def _send_nothing(stream: str, message: str) -> None:
    """Send nothing, because the process has no clients."""


class PresenceService:
    """Keeps the members of live connections present, removes expired members, and sends the presence signals.

    The service works in rounds, on an event loop. Each round refreshes the members of this event loop, joins missing
    members again, and removes the expired members of all processes. Rounds run while there are members or open streams.
    After that, they run until the released members have expired.

    Args:
        store: the presence store.
        send: a function that is called with a stream and a presence message. It sends the message to the stream's
            clients on this event loop.
        sleep: a function that waits between two rounds. It is called with the number of seconds to wait.
    """

    def __init__(
        self,
        store: PresenceStore,
        send: Callable[[str, str], None] = _send_nothing,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.store = store
        self.rosters = Rosters(store, send)
        self._sleep = sleep
        #: The members to keep present, by stream and session.
        self._members: dict[tuple[str, str], _LocalMember] = {}
        self._served: set[str] = set()
        self._running_joins = 0
        #: The streams and sessions of the members that have left while joins were running.
        self._left_during_joins: set[tuple[str, str]] = set()
        self._rounds_left = 0
        self._failing = False
        self._rounds: asyncio.Task[None] | None = None
        #: An event that is set while no refresh is running. `leave_soon` waits for it, because a refresh that has begun
        #: may still renew the TTL of a released member.
        self._refreshed = asyncio.Event()
        self._refreshed.set()
        #: The task that removes expired members after a client has closed its web page; None if it is not needed.
        self._sweeps: asyncio.Task[None] | None = None
        #: The time at which the sweeps stop, by the clock of the event loop.
        self._sweep_until = 0.0
        self._stopped = False
        self._signals: deque[PresenceEvent] = deque()
        self._sending: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether the task that makes the rounds is running."""
        return self._rounds is not None

    async def stop(self) -> None:
        """Stop the rounds, and send the pending signals. The members remain present until they expire."""
        self._stopped = True
        self._members.clear()
        self._served.clear()
        await cancel(self._rounds)
        await cancel(self._sweeps)
        # If a task is cancelled before it has begun, it does not reset its attribute itself.
        self._rounds = self._sweeps = None
        await self.rosters.close()
        if self._sending is not None:
            await asyncio.wait([self._sending])

    # -- streams ------------------------------------------------------------------------------------------------------

    async def open(self, stream: str) -> None:
        """Begin to send a stream's presence events to its clients, and to remove expired members."""
        await self.open_many([stream])

    async def open_many(self, streams: Collection[str]) -> None:
        """Begin to send the presence events of several streams to their clients, and to remove expired members."""
        await self.rosters.subscribe_many(streams)
        if not self._stopped:
            self._served.update(streams)
            self._start_rounds()

    async def close(self, stream: str) -> None:
        """Stop sending the presence events of a stream that has no more clients on this event loop."""
        self._served.discard(stream)
        await self.rosters.unsubscribe(stream)

    # -- members ------------------------------------------------------------------------------------------------------

    async def join(self, stream: str, session: str, id_: str, info: Any, *, replaces: str = "") -> None:
        """Add or update a member, and keep it present. If the store fails, the next `round` tries again.

        Args:
            stream: the stream's name.
            session: the key of the member's session, which is unique in the stream.
            id_: the id of the member. A member may have several sessions.
            info: the info of the member, which may be any JSON value.
            replaces: the key of the former session that this session replaces; `""` if there is none.

        Raises:
            TypeError, ValueError: `info` is not a JSON value.
        """
        if self._stopped:
            return
        former = self._members.get((stream, session))
        joined = former is not None and former.member.joined and former.member.id == id_
        local = self._members[stream, session] = _LocalMember(Member(stream, session, id_, info, joined, replaces))
        self._start_rounds()
        try:
            await self._join_all([local])
        except StoreError as error:
            self._report_failure(error)
        except Exception:
            # The info cannot be encoded. So a retry in the next round would fail, too, and affect other members.
            if self._members.get(local.key) is local:
                self.release(stream, session)
            raise

    async def leave(self, stream: str, session: str) -> None:
        """Remove a member.

        Raises:
            StoreError: the store could not be reached. The member leaves when it expires.
        """
        self.release(stream, session)
        if self._running_joins:
            self._left_during_joins.add((stream, session))
        self._queue_signals(await self.store.aleave(stream, session))

    def release(self, stream: str, session: str) -> None:
        """Stop refreshing a member. It expires, unless it is removed, or another connection keeps it present."""
        if self._members.pop((stream, session), None) is not None:
            self._start_rounds()

    async def leave_soon(self, stream: str, session: str) -> None:
        """Let a member leave after `PRESENCE_GRACE`, because no client will restore its session.

        The time is stored, so that the member leaves even if this process ends. If the store fails, the member leaves
        after `PRESENCE_TTL`.
        """
        self.release(stream, session)
        await self._refreshed.wait()
        try:
            await self.store.ashorten(stream, session)
        except StoreError as error:
            self._report_failure(error)
            return
        grace = self.store.settings.presence_grace + SWEEP_MARGIN
        self._sweep_until = asyncio.get_running_loop().time() + grace
        if self._sweeps is None and not self._stopped:
            self._sweeps = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        """Remove the expired members of closed web pages soon, because the next round may be much later."""
        loop = asyncio.get_running_loop()
        try:
            while (left := self._sweep_until - loop.time()) > 0:
                await self._sleep(min(left, SWEEP_INTERVAL))
                # If members cannot be refreshed, they must not be removed.
                if not self._failing:
                    self._queue_signals(await self.store.aexpire())
        except Exception as error:
            self._report_failure(error)
        finally:
            self._sweeps = None

    # -- rounds -------------------------------------------------------------------------------------------------------

    async def round(self) -> None:
        """Refresh the members, join missing members again, and remove the expired members of all processes."""
        try:
            sessions: dict[str, list[str]] = {stream: [] for stream in self.rosters.streams}
            for stream, session in self._members:
                sessions.setdefault(stream, []).append(session)
            if sessions:
                self._refreshed.clear()
                refreshed = await self.store.arefresh(sessions)
                await self._rejoin(refreshed.unknown)
                self.rosters.check(refreshed.incarnations)
            self._queue_signals(await self.store.aexpire())
        except Exception as error:
            self._report_failure(error)
        else:
            if self._failing:
                self._failing = False
                logger.info("The presence store works again.")
        finally:
            self._refreshed.set()

    def _report_failure(self, error: Exception) -> None:
        log = logger.debug if self._failing else logger.error
        self._failing = True
        log("Presence could not be refreshed; retrying every %.1f s.", self._delay, exc_info=error)

    async def _rejoin(self, unknown: Iterable[tuple[str, str]]) -> None:
        """Repeat the joins of members that the store has lost, and joins that may not have reached the store.

        Args:
            unknown: the streams and sessions of the members that the store does not have.
        """
        keys = dict.fromkeys([*unknown, *(key for key, local in self._members.items() if local.pending)])
        missing = [self._members[key] for key in keys if key in self._members]
        for start in range(0, len(missing), REJOIN_SIZE):
            batch = missing[start : start + REJOIN_SIZE]
            await self._join_all([local for local in batch if self._members.get(local.key) is local])

    async def _join_all(self, batch: Sequence[_LocalMember]) -> None:
        self._running_joins += 1
        try:
            self._queue_signals(await self.store.ajoin_all([local.member for local in batch]))
            for local in batch:
                local.member = replace(local.member, joined=True)
                local.pending = False
            for local in batch:
                # If the member has left or joined again during this call, the store may have executed the later command
                # first. So the later command is repeated.
                current = self._members.get(local.key)
                if current is None and local.key in self._left_during_joins:
                    self._queue_signals(await self.store.aleave(*local.key))
                elif current is not None and current is not local:
                    self._queue_signals(await self.store.ajoin_all([current.member]))
        finally:
            self._running_joins -= 1
            if not self._running_joins:
                self._left_during_joins.clear()

    def _start_rounds(self) -> None:
        self._rounds_left = LAST_ROUNDS
        if self._rounds is None and not self._stopped:
            self._rounds = asyncio.get_running_loop().create_task(self._make_rounds())

    @property
    def _delay(self) -> float:
        """The time, in seconds, until the next round."""
        interval = self.store.settings.presence_ttl / ROUNDS_PER_TTL
        return min(interval, BACKGROUND_RETRY_DELAY) if self._failing else interval

    async def _make_rounds(self) -> None:
        try:
            while self._members or self._served or self._rounds_left:
                await self._sleep(self._delay)
                await self.round()
                if not (self._members or self._served or self._failing):
                    self._rounds_left -= 1
        finally:
            self._rounds = None

    # -- signals ------------------------------------------------------------------------------------------------------

    def _queue_signals(self, events: Iterable[PresenceEvent]) -> None:
        """Queue the signals of events that were caused by this process, and send them in order in the background."""
        for event in events:
            if not _signal(event).has_listeners(type(self.store)):
                continue
            if len(self._signals) >= MAX_PENDING_SIGNALS:
                logger.error("The receivers of the presence signals are too slow; the signal for %r is dropped.", event)
                continue
            self._signals.append(event)
            if self._sending is None:
                # The context of the calling connection must not leak into the receivers.
                self._sending = asyncio.get_running_loop().create_task(self._send_signals(), context=Context())

    async def _send_signals(self) -> None:
        try:
            while self._signals:
                # A context variable that a receiver sets must not leak into the receivers of other signals.
                await run_handler(Context().run, self._send_signal, self._signals.popleft())
        finally:
            self._sending = None

    def _send_signal(self, event: PresenceEvent) -> None:
        namespace, stream = split_namespace(event.stream)
        with use_namespace(namespace):
            _signal(event).send_robust(
                type(self.store), stream=stream, namespace=namespace, id=event.id, info=event.info
            )


def _signal(event: PresenceEvent) -> Signal:
    return presence_joined if event.type == "join" else presence_left
