"""Keeps the records of this process's live sessions up to date, in batches."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Collection, Coroutine, Sequence
from typing import Any, Final, Protocol

from reliable_cable.exceptions import StoreError
from reliable_cable.identity import Identity
from reliable_cable.stores.clock import StoreClock
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore

logger = logging.getLogger("reliable_cable")

#: Seconds within which changed sessions are written together.
SAVE_DELAY: Final = 0.05
#: Seconds until a store that failed is tried again.
RETRY_DELAY: Final = 1.0
#: Seconds for which a client waits for its session to be written, or read: then it goes on without.
PATIENCE: Final = 2.0
#: How long, in seconds, the effect of a command may be delayed until the changed session is saved.
EFFECT_PATIENCE: Final = 8.0

#: Seconds for which a loss of data is remembered: whoever else finds out about it does so within.
LOSS_MEMORY: Final = 60.0

#: Sessions that are read at once, and written: a record takes longer to be made.
LOAD_SIZE: Final = 200
SAVE_SIZE: Final = 100

#: Nobody's session id, to see whether the store answers.
_NOBODY: Final = "-"
#: What the ids of records begin with that are written to be missed if the store loses data.
WITNESS: Final = "witness-"


class LiveSession(Protocol):
    """A connection whose session can be restored."""

    @property
    def sid(self) -> str:
        """The session's id."""

    @property
    def sids(self) -> Collection[str]:
        """Every id by which the session is known."""

    def record(self) -> SessionRecord:
        """Return what a restore needs, as of now."""


class SessionService:
    """Writes changed sessions soon, and touches all of them before they expire.

    What could not be written is written as soon as the store is back. Used from one event loop.

    Args:
        store: keeps the records.
        clock: the store's clock, for the times in records. None creates one.
    """

    def __init__(self, store: SessionStore, clock: StoreClock | None = None) -> None:
        self.store = store
        self._clock = clock or StoreClock(store)
        self.enabled = store.settings.sessions_ttl > 0
        self._live: dict[str, LiveSession] = {}
        self._changed: dict[str, LiveSession] = {}
        #: Records of sessions that are not live here, to be written, and when they will have expired.
        self._left: dict[str, tuple[SessionRecord, float]] = {}
        #: Sessions that may not be restored, and whose records are still to be deleted.
        self._void: set[str] = set()
        self._writer: asyncio.Task[None] | None = None
        #: A write that has not begun: whoever has something to be written waits for it, too.
        self._next_write: asyncio.Task[None] | None = None
        #: A future for each call of `save` that waits for the next write. Its result is whether that succeeded.
        self._savers: list[asyncio.Future[bool]] = []
        #: Live sessions of which the store may have a record, because a write was attempted.
        self._offered: set[str] = set()
        #: Sessions that wait to be read, all at once.
        self._wanted: list[tuple[str, Identity, asyncio.Future[SessionRecord | None]]] = []
        self._touching: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        #: One write at a time: an older record must not be written over a newer one.
        self._lock = asyncio.Lock()
        self._failing = False
        self._suspecting: asyncio.Task[None] | None = None
        self._witness = ""
        self._witness_due = store.may_lose_data
        self._lost_at = -math.inf

    def add(self, session: LiveSession) -> None:
        """Keep a session's record alive from now on."""
        if self.enabled:
            self._live[session.sid] = session
            self._schedule_touch()

    def changed(self, session: LiveSession) -> None:
        """Write a session's record soon."""
        if session.sid in self._live:
            self._changed[session.sid] = session
            self._write_soon()

    async def save(self, session: LiveSession) -> bool:
        """Save a session's record before its client sees the effect of a change.

        Returns:
            Whether the client may see the effect. False: the store may have an older record, and the new one could not
            be saved within `EFFECT_PATIENCE` seconds.
        """
        if session.sid not in self._live:
            return True
        self._changed[session.sid] = session
        if self._failing and session.sid not in self._offered:
            # The store has no older record of this session, so no restore can bring back an older state.
            self._write_soon()
            return True
        saver: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._savers.append(saver)
        self._write_now()
        await asyncio.wait([saver], timeout=EFFECT_PATIENCE)
        if not saver.done():
            saver.cancel()
            return False
        return saver.result()

    async def take_over(self, session: LiveSession, sid: str, record: SessionRecord) -> None:
        """Write the record of a session that continues session `sid`, and what is to become of the old record."""
        self.add(session)
        self._changed[session.sid] = session
        self.keep(sid, record)
        await self._written()

    def keep(self, sid: str, record: SessionRecord) -> None:
        """Write the record of a session that is not live here any more."""
        self._keep(sid, record)
        self._write_soon()

    async def drop(self, session: LiveSession) -> None:
        """Write a session's record for the last time: its time to live begins."""
        if self._live.get(session.sid) is not session:
            return
        self.discard(session)
        record = _record(session)
        if record is not None:
            self._keep(session.sid, record)
        await self._written()

    def discard(self, session: LiveSession) -> None:
        """Keep a session's record no longer up to date."""
        self._live.pop(session.sid, None)
        self._changed.pop(session.sid, None)
        self._offered.discard(session.sid)
        if not self._live and self._touching is not None:
            self._touching.cancel()
            self._touching = None

    def void(self, session: LiveSession) -> None:
        """Let nobody restore a session, from now on and not only when its records have been deleted."""
        self.discard(session)
        if self.enabled:
            for sid in session.sids:
                self._left.pop(sid, None)
            self._void.update(session.sids)
            self._spawn(self._write())

    async def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the newest record of a session if it is this identity's; None also if the store cannot tell in time.

        The client then subscribes afresh, with its positions.
        """
        if not self.enabled:
            return None
        try:
            async with asyncio.timeout(PATIENCE):
                if sid in self._changed or sid in self._left:
                    await self._written()
                found = await self._load(sid, identity)
        except (StoreError, TimeoutError) as error:
            self._failed("read", error)
            return None
        return None if sid in self._void else found

    async def _load(self, sid: str, identity: Identity) -> SessionRecord | None:
        found: asyncio.Future[SessionRecord | None] = asyncio.get_running_loop().create_future()
        self._wanted.append((sid, identity, found))
        if len(self._wanted) == 1:
            self._spawn(self._load_wanted())
        return await found

    async def _load_wanted(self) -> None:
        # Those that come in the same turn of the event loop are there when this begins.
        wanted, self._wanted = self._wanted, []
        for start in range(0, len(wanted), LOAD_SIZE):
            part = wanted[start : start + LOAD_SIZE]
            sid, identity, _ = part[0]
            try:
                if len(part) == 1:
                    records = [await self.store.aload(sid, identity)]
                else:
                    records = await self.store.aload_many([(sid, identity) for sid, identity, _ in part])
            except Exception as error:
                for _, _, found in part:
                    if not found.done():
                        found.set_exception(error)
                continue
            for (_, _, found), record in zip(part, records, strict=True):
                if not found.done():
                    found.set_result(record)

    async def refresh(self) -> bool:
        """Touch the records of all live sessions; those that the store has lost are written again.

        Returns:
            Whether the store is known to have lost nothing within the last minute.

        Raises:
            StoreError: the store cannot be reached.
        """
        witness = self._witness
        asked = [sid for sid in self._live if sid not in self._changed]
        missing = await self.store.atouch([*asked, witness] if witness else asked)
        lost = {sid for sid in missing if sid in self._live and sid not in self._changed}
        if lost:
            logger.warning("The store has lost %d session records; they are written again.", len(lost))
            self._changed.update((sid, self._live[sid]) for sid in lost)
        if not self.store.may_lose_data:
            sure = True
        else:
            if witness in missing:
                self._lost_at = time.monotonic()
            sure = bool(witness) and time.monotonic() - self._lost_at > LOSS_MEMORY
            # Of an older state of the store, the next witness knows nothing.
            self._witness_due = True
        if lost or self._witness_due:
            self._write_soon()
        return sure

    def suspect(self) -> None:
        """The store may have lost data: look after the live sessions' records soon."""
        if self.store.may_lose_data and self._live and self._suspecting is None:
            self._suspecting = self._spawn(self._look_after())

    async def _look_after(self) -> None:
        await asyncio.sleep(SAVE_DELAY)
        self._suspecting = None
        await self.touch()

    async def stop(self) -> None:
        """Write what there is to write, once, and begin nothing more by itself."""
        if self._touching is not None:
            self._touching.cancel()
            self._touching = None
        if self._changed or self._left or self._void:
            await self._write()
        tasks = [task for task in (self._writer, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writer = None

    # -- writing ------------------------------------------------------------------------------------------------------

    def _keep(self, sid: str, record: SessionRecord) -> None:
        self._left[sid] = (record, time.monotonic() + self.store.settings.sessions_ttl)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _write_soon(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write_later())

    async def _write_later(self) -> None:
        await asyncio.sleep(RETRY_DELAY if self._failing else SAVE_DELAY)
        self._writer = None
        await self._write()

    async def _written(self) -> None:
        """Write what there is to write, and wait for that as long as the store is not known to fail."""
        writing = self._write_now()
        if writing is not None:
            await asyncio.wait([writing], timeout=PATIENCE)
            if not writing.done():
                self._failed("written", TimeoutError("the store does not answer"))

    def _write_now(self) -> asyncio.Task[None] | None:
        """Return a write that has not begun yet. While the store is failing, schedule a retry and return None."""
        if self._failing:
            self._write_soon()
            return None
        if self._next_write is None:
            self._next_write = self._spawn(self._write())
        return self._next_write

    async def _write(self) -> None:
        async with self._lock:
            await self._clock.ready()
            self._next_write = None
            savers, self._savers = self._savers, []
            saved = False
            changed, self._changed = self._changed, {}
            now = time.monotonic()
            left = self._left = {sid: kept for sid, kept in self._left.items() if kept[1] > now}
            left, void = dict(left), set(self._void)
            wanted: list[tuple[str, SessionRecord | LiveSession]] = [(sid, kept[0]) for sid, kept in left.items()]
            wanted += changed.items()
            witness = ""
            if self._witness_due and self._live:
                witness = WITNESS + secrets.token_hex(8)
                wanted.append((witness, SessionRecord({}, 0)))
            try:
                if self._failing:
                    # A failing store is tried with this first. So records of new sessions are not offered to it (see
                    # `save`).
                    await self.store.atouch([_NOBODY])
                for start in range(0, len(wanted), SAVE_SIZE):
                    # Records as they are now: to make them takes time, which is shared with others.
                    if records := self._records(wanted[start : start + SAVE_SIZE]):
                        self._offered |= records.keys() & self._live.keys()
                        await self.store.asave(records)
                if void:
                    await self.store.adelete(void)
            except StoreError as error:
                self._changed = {sid: session for sid, session in changed.items() if sid in self._live} | self._changed
                self._savers = [saver for saver in savers if not saver.done()] + self._savers
                self._failed("written", error)
                self._write_soon()
                return
            except Exception:
                # Another try would be of no use. A client that has no record subscribes afresh.
                logger.exception("%d session records could not be written.", len(wanted))
            else:
                saved = True
                if witness:
                    self._witness, self._witness_due = witness, False
            for saver in savers:
                if not saver.done():
                    saver.set_result(saved)
            self._left = {sid: kept for sid, kept in self._left.items() if left.get(sid) is not kept}
            self._void -= void
        if self._failing:
            self._failing = False
            logger.info("Sessions are kept again.")

    def _records(self, wanted: Sequence[tuple[str, SessionRecord | LiveSession]]) -> dict[str, SessionRecord]:
        records: dict[str, SessionRecord] = {}
        for sid, item in wanted:
            if isinstance(item, SessionRecord):
                records[sid] = item
            # The record of one that has gone meanwhile is another matter.
            elif self._live.get(sid) is item and (record := _record(item)) is not None:
                records[sid] = record
        return records

    def _failed(self, done: str, error: Exception) -> None:
        if not self._failing:
            # One line an outage.
            logger.warning("Sessions cannot be %s: %s", done, error)
        self._failing = True
        self._write_soon()

    # -- touching -----------------------------------------------------------------------------------------------------

    def _schedule_touch(self) -> None:
        if self._touching is None:
            interval = self.store.settings.sessions_ttl / 3
            self._touching = asyncio.get_running_loop().call_later(interval, self._touch)

    def _touch(self) -> None:
        self._touching = None
        if self._live:
            self._spawn(self.touch())
            self._schedule_touch()

    async def touch(self) -> None:
        """Do as `refresh`; a store that fails is tried again at the next time."""
        try:
            await self.refresh()
        except StoreError as error:
            self._failed("touched", error)


def _record(session: LiveSession) -> SessionRecord | None:
    """Return a session's record; one that cannot be made costs only this session its restore."""
    try:
        return session.record()
    except Exception:
        logger.exception("A session record could not be made.")
        return None
