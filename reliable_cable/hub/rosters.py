"""Records the members that an event loop's clients know, for each stream, and corrects the clients' lists of members.

Clients receive join and leave events. If events may have been missed, or the store has lost data, the roster of the
stream is compared with the store, and the difference is sent as events (see Protocol: Presence).
"""

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from reliable_cable.concurrency.retrying import RETRY_DELAY
from reliable_cable.logs import logger
from reliable_cable.protocol import messages
from reliable_cable.protocol.presence import Difference, ToldMembers, compare
from reliable_cable.stores.presence.base import (
    UNHEARD_TIME,
    PresenceEvent,
    PresenceInfo,
    PresenceMissed,
    PresenceStore,
)

#: An incarnation that no stream has. If a session record contains it, the client has to subscribe again.
OTHER_INCARNATION: Final = "-"
#: The maximum number of rosters that are repaired at the same time.
MAX_REPAIRS: Final = 8


@dataclass(slots=True, eq=False)
class Roster:
    """The members of one stream, as an event loop's clients know them.

    Args:
        stream: the name of the stream.
    """

    stream: str
    told: ToldMembers = field(default_factory=ToldMembers)
    #: The incarnation of the presence data from which the clients' lists come; `""` before the first snapshot.
    incarnation: str = ""
    #: A dict for each running read of the store, with the last event of each id since the read began.
    reads: list[dict[str, PresenceEvent]] = field(default_factory=list)
    repair: asyncio.Task[None] | None = None
    repair_requested: bool = False
    #: A timer that is started after a loss of data. While it runs, some members of other servers may not have joined
    #: again yet.
    rejoin_timer: asyncio.TimerHandle | None = None
    #: Whether `rejoin_timer` has ended. Leave events are then sent for the ids that are still missing.
    rejoin_time_over: bool = False
    #: The time of the last correction of the clients' lists after a loss of data, by the clock of the event loop.
    corrected_at: float = -math.inf

    @property
    def recorded_incarnation(self) -> str:
        """The incarnation for the session record of a client whose list belongs to this roster.

        The events that correct a list after a loss of data are not stored, so they cannot be sent again. If such events
        were sent so recently that the client may have missed them, the value is `OTHER_INCARNATION`.
        """
        recent = asyncio.get_running_loop().time() - self.corrected_at < UNHEARD_TIME
        return OTHER_INCARNATION if recent else self.incarnation


class Rosters:
    """An event loop's rosters: one for each stream whose members a client has requested.

    Args:
        store: the presence store.
        send: a function that is called with a stream and a presence message. It sends the message to the stream's
            clients on this event loop.
    """

    def __init__(self, store: PresenceStore, send: Callable[[str, str], None]) -> None:
        self._store = store
        self._send = send
        self._listener = store.listen(self._receive)
        self._subscribed: set[str] = set()
        self._rosters: dict[str, Roster] = {}
        self._repair_slots = asyncio.Semaphore(MAX_REPAIRS)

    @property
    def streams(self) -> Iterable[str]:
        """The names of the streams that have a roster."""
        return self._rosters.keys()

    async def subscribe(self, stream: str) -> None:
        """Begin to send a stream's join and leave events to its clients."""
        await self.subscribe_many([stream])

    async def subscribe_many(self, streams: Collection[str]) -> None:
        """Begin to send the join and leave events of several streams to their clients."""
        self._subscribed.update(streams)
        await self._listener.subscribe_many(streams)

    async def unsubscribe(self, stream: str) -> None:
        """Stop sending a stream's events, and remove its roster."""
        self._subscribed.discard(stream)
        self._remove(stream)
        await self._listener.unsubscribe(stream)

    async def close(self) -> None:
        """Unsubscribe from all streams, and remove their rosters."""
        self._subscribed.clear()
        for stream in list(self._rosters):
            self._remove(stream)
        await self._listener.close()

    # -- snapshots ----------------------------------------------------------------------------------------------------

    async def open(self, stream: str) -> Roster:
        """Return the roster of a stream. If it has none, it gets one.

        Raises:
            StoreError: the store could not be reached.
        """
        roster = self._rosters.get(stream)
        if roster is None:
            # If the stream has no members, it may have no incarnation. The refresh then creates one.
            await self._store.arefresh({stream: ()})
            roster = self._rosters.get(stream) or Roster(stream)
            if stream in self._subscribed:  # `unsubscribe` may have been called during the refresh
                self._rosters[stream] = roster
        return roster

    async def snapshot(self, stream: str, *, records: bool = True) -> tuple[PresenceInfo, Roster]:
        """Return the members for a client, and the roster to which the client's list then belongs.

        The caller must send the snapshot to the client before it awaits anything. The snapshot includes the events that
        have arrived during the read.

        Args:
            stream: the stream's name.
            records: whether to return the members. If False, only their number is returned.

        Raises:
            StoreError: the store could not be read.
        """
        roster = await self.open(stream)
        info = await self._read(roster, records=records)
        if info.records is not None:
            roster.told.snapshot(info.records.keys())
        roster.incarnation = roster.incarnation or info.incarnation
        return info, roster

    async def fence(self, stream: str) -> None:
        """Wait until the events of a stream that happened before this call have been sent to its clients."""
        await self._listener.fence(stream)

    async def resume(self, stream: str, incarnation: str, away: float) -> tuple[Difference, Roster] | None:
        """Return the events that correct the list of a restored client, and the roster to which the list then belongs.

        The caller must send the events to the client before it awaits anything.

        Args:
            stream: the stream's name.
            incarnation: the incarnation of the presence data from which the client's list comes.
            away: how long the client was disconnected, in seconds.

        Returns:
            The events and the roster; None if the list cannot be corrected, because the store has lost data while the
            client was disconnected.

        Raises:
            StoreError: the store could not be read.
        """
        left = await self._store.aleft_within(stream, away + UNHEARD_TIME)
        info, roster = await self.snapshot(stream)
        if info.incarnation != incarnation:
            return None
        # It is not known which ids the client's list contains. So a leave event is returned for each absent id that may
        # have left while the client was disconnected, and a join event for each id that is present.
        return compare(dict.fromkeys(left, False), info.records or {}), roster

    async def _read(self, roster: Roster, *, records: bool = True) -> PresenceInfo:
        """Read the members, and apply the events that arrive during the read.

        The result of the read may or may not include such an event. In both cases, the last event of an id tells
        whether the id is present.
        """
        events: dict[str, PresenceEvent] = {}
        roster.reads.append(events)
        try:
            info = await self._store.ainfo(roster.stream, records=records)
        finally:
            roster.reads = [other for other in roster.reads if other is not events]
        if info.records is None:
            return info
        present = dict(info.records)
        for id_, event in events.items():
            present.pop(id_, None)
            if event.type == "join":
                present[id_] = event.info
        return replace(info, records=present, total=len(present))

    # -- events -------------------------------------------------------------------------------------------------------

    def _receive(self, event: PresenceEvent | PresenceMissed) -> None:
        roster = self._rosters.get(event.stream)
        if isinstance(event, PresenceMissed):
            if roster is not None:
                self._request_repair(roster)
            return
        if roster is not None:
            for events in roster.reads:
                events[event.id] = event
        self._send_event(event)

    def _send_event(self, event: PresenceEvent) -> None:
        roster = self._rosters.get(event.stream)
        told = ToldMembers() if roster is None else roster.told
        if event.type == "join":
            told.join(event.id)
            self._send(event.stream, messages.presence_join(event.id, event.info))
        else:
            told.leave(event.id)
            self._send(event.stream, messages.presence_leave(event.id))

    # -- repair -------------------------------------------------------------------------------------------------------

    def check(self, incarnations: Mapping[str, str]) -> None:
        """Repair the rosters of streams whose presence data were lost.

        Args:
            incarnations: the current incarnations of the streams, by name.
        """
        for stream, incarnation in incarnations.items():
            roster = self._rosters.get(stream)
            if roster is not None and roster.incarnation not in ("", incarnation) and roster.rejoin_timer is None:
                self._request_repair(roster)

    def _request_repair(self, roster: Roster) -> None:
        roster.repair_requested = True
        if roster.repair is None:
            roster.repair = asyncio.get_running_loop().create_task(self._repair(roster))

    async def _repair(self, roster: Roster) -> None:
        failing = False
        try:
            while roster.repair_requested and self._is_served(roster):
                roster.repair_requested = False
                try:
                    async with self._repair_slots:
                        info = await self._read(roster)
                except Exception:
                    log = logger.debug if failing else logger.exception
                    log("The presence of %r could not be read; retrying every %g s.", roster.stream, RETRY_DELAY)
                    failing = roster.repair_requested = True
                    await asyncio.sleep(RETRY_DELAY)
                    continue
                if self._is_served(roster):
                    self._correct(roster, info)
        finally:
            roster.repair = None

    def _correct(self, roster: Roster, info: PresenceInfo) -> None:
        """Send the events that correct the clients' lists."""
        difference = compare(roster.told.ids, info.records or {})
        for id_, value in difference.joins.items():
            self._send_event(PresenceEvent(roster.stream, "join", id_, value))
        lost = info.incarnation != roster.incarnation
        if lost and not (roster.rejoin_time_over and info.incarnation):
            # All servers join their members again within the TTL of members. Until then, an id that is missing in the
            # store may still be present. So no leave events are sent yet.
            roster.rejoin_time_over = False
            if roster.rejoin_timer is None:
                delay = self._store.settings.presence_ttl
                roster.rejoin_timer = asyncio.get_running_loop().call_later(delay, self._end_rejoin_time, roster)
            return
        for id_ in difference.leaves:
            self._send_event(PresenceEvent(roster.stream, "leave", id_))
        if lost:
            roster.corrected_at = asyncio.get_running_loop().time()
        roster.incarnation = info.incarnation
        roster.rejoin_time_over = False

    def _end_rejoin_time(self, roster: Roster) -> None:
        roster.rejoin_timer = None
        roster.rejoin_time_over = True
        self._request_repair(roster)

    def _is_served(self, roster: Roster) -> bool:
        """Return whether a roster is still in use. During a repair, the roster may have been removed or replaced."""
        return self._rosters.get(roster.stream) is roster

    def _remove(self, stream: str) -> None:
        roster = self._rosters.pop(stream, None)
        if roster is not None:
            if roster.rejoin_timer is not None:
                roster.rejoin_timer.cancel()
            if roster.repair is not None:
                roster.repair.cancel()
