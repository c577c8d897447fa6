"""What the clients of one process believe about who is in a stream, and how that is made right after a loss.

A client asks once who is there, and goes by joins and leaves from then on (PROTOCOL.md, 14). Where some of those were
missed, or the store lost its data, what the clients may believe is compared with who is there, and the difference is
sent as joins and leaves; they may repeat what a client has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from reliable_cable.protocol import messages
from reliable_cable.stores.presence.base import PresenceEvent, PresenceInfo, PresenceMissed, PresenceStore

logger = logging.getLogger("reliable_cable")

#: Seconds until a store that failed is asked again.
RETRY_DELAY: Final = 0.5

#: Lists that are made right at once.
READS: Final = 8


@dataclass(slots=True, eq=False)
class PresenceList:
    """What the clients of this process believe of one stream."""

    stream: str
    #: Whom any of them may believe to be there.
    believed: set[str] = field(default_factory=set)
    #: Whom all of them know to be there; None: nobody has asked yet.
    known: set[str] | None = None
    #: Of the data that the lists are right by; empty until the first answer.
    incarnation: str = ""
    #: The last event of each id that came during a read, for each read under way.
    reads: list[dict[str, PresenceEvent]] = field(default_factory=list)
    repair: asyncio.Task[None] | None = None
    again: bool = False
    #: Runs while other servers may still have to join their members again.
    patience: asyncio.TimerHandle | None = None
    waited: bool = False


class PresenceLists:
    """The lists of all streams that are served here.

    Args:
        store: knows who is there.
        send: takes a stream and a presence message for all of its clients here.
    """

    def __init__(self, store: PresenceStore, send: Callable[[str, str], None]) -> None:
        self._store = store
        self._send = send
        self._listener = store.listen(self._take)
        self._subscribed: set[str] = set()
        self._lists: dict[str, PresenceList] = {}
        self._turns = asyncio.Semaphore(READS)

    @property
    def streams(self) -> Iterable[str]:
        """The streams that clients have lists of."""
        return self._lists.keys()

    async def subscribe(self, stream: str) -> None:
        """Send a stream's joins and leaves from now on."""
        self._subscribed.add(stream)
        await self._listener.subscribe(stream)

    async def unsubscribe(self, stream: str) -> None:
        """Send them no more, and forget what was believed."""
        self._subscribed.discard(stream)
        self._drop(stream)
        await self._listener.unsubscribe(stream)

    async def close(self) -> None:
        """Leave all streams."""
        self._subscribed.clear()
        for stream in list(self._lists):
            self._drop(stream)
        await self._listener.close()

    async def ask(self, stream: str, *, records: bool = True) -> tuple[PresenceInfo, PresenceList]:
        """Return who is there, for a client that keeps it, and the list that its own is part of from now on.

        The client is to be sent the answer at once: what happened up to now is in it, and was sent before.

        Raises:
            StoreError: it could not be read.
        """
        found = self._lists.get(stream)
        if found is None:
            # A stream without members has no incarnation, unless it is asked for.
            await self._store.arefresh({stream: ()})
            found = self._lists.get(stream) or PresenceList(stream)
            if stream in self._subscribed:  # or it was left meanwhile
                self._lists[stream] = found
        info, events = await self._read(found, records=records)
        if info.records is not None:
            present = dict(info.records)
            for id_, event in events.items():
                present.pop(id_, None)
                if event.type == "join":
                    present[id_] = event.info
            info = replace(info, records=present, total=len(present))
            found.believed.update(present)
            found.known = set(present) if found.known is None else found.known.intersection(present)
        found.incarnation = found.incarnation or info.incarnation
        return info, found

    def check(self, incarnations: Mapping[str, str]) -> None:
        """Take the present incarnations of streams: under another one than before, everything is compared."""
        for stream, incarnation in incarnations.items():
            found = self._lists.get(stream)
            if found is not None and found.incarnation not in ("", incarnation) and found.patience is None:
                self._repair(found)

    # -- events -------------------------------------------------------------------------------------------------------

    def _take(self, event: PresenceEvent | PresenceMissed) -> None:
        found = self._lists.get(event.stream)
        if isinstance(event, PresenceMissed):
            if found is not None:
                self._repair(found)
            return
        if found is not None:
            for events in found.reads:
                events[event.id] = event
        if event.type == "join":
            self._joined(event.stream, event.id, event.info)
        else:
            self._left(event.stream, event.id)

    def _joined(self, stream: str, id_: str, info: Any) -> None:
        found = self._lists.get(stream)
        if found is not None:
            found.believed.add(id_)
            if found.known is not None:
                found.known.add(id_)
        self._send(stream, messages.presence_join(id_, info))

    def _left(self, stream: str, id_: str) -> None:
        found = self._lists.get(stream)
        if found is not None:
            found.believed.discard(id_)
            if found.known is not None:
                found.known.discard(id_)
        self._send(stream, messages.presence_leave(id_))

    async def _read(
        self, found: PresenceList, *, records: bool = True
    ) -> tuple[PresenceInfo, dict[str, PresenceEvent]]:
        """Read who is there, and gather the events that come meanwhile: they may be older or newer than what is read.

        Either way, what is announced of an id after its last event in here decides, and comes in order.
        """
        events: dict[str, PresenceEvent] = {}
        found.reads.append(events)
        try:
            return await self._store.ainfo(found.stream, records=records), events
        finally:
            found.reads = [other for other in found.reads if other is not events]

    # -- making right -------------------------------------------------------------------------------------------------

    def _repair(self, found: PresenceList) -> None:
        found.again = True
        if found.repair is None:
            found.repair = asyncio.get_running_loop().create_task(self._run_repair(found))

    async def _run_repair(self, found: PresenceList) -> None:
        failed = False
        try:
            while found.again and self._lists.get(found.stream) is found:
                found.again = False
                try:
                    async with self._turns:
                        info, events = await self._read(found)
                except Exception:
                    log = logger.debug if failed else logger.exception
                    log("Who is in %r could not be read; trying again.", found.stream)
                    failed = found.again = True
                    await asyncio.sleep(RETRY_DELAY)
                    continue
                if self._lists.get(found.stream) is found:
                    self._compare(found, info, events)
        finally:
            found.repair = None

    def _compare(self, found: PresenceList, info: PresenceInfo, events: Mapping[str, PresenceEvent]) -> None:
        present = info.records or {}
        known = found.known or ()
        for id_ in [id_ for id_ in present if id_ not in known and id_ not in events]:
            self._joined(found.stream, id_, present[id_])
        lost = info.incarnation != found.incarnation
        if lost and not (found.waited and info.incarnation):
            # Data were lost. All servers join their members again within a time to live: till then, who is missing may
            # well be there.
            found.waited = False
            if found.patience is None:
                delay = self._store.settings.presence_ttl
                found.patience = asyncio.get_running_loop().call_later(delay, self._stop_waiting, found)
            return
        for id_ in found.believed - present.keys() - events.keys():
            self._left(found.stream, id_)
        found.incarnation = info.incarnation
        found.waited = False

    def _stop_waiting(self, found: PresenceList) -> None:
        found.patience = None
        found.waited = True
        self._repair(found)

    def _drop(self, stream: str) -> None:
        found = self._lists.pop(stream, None)
        if found is not None:
            if found.patience is not None:
                found.patience.cancel()
            if found.repair is not None:
                found.repair.cancel()
