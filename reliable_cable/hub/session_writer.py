"""Writes session records to the store in batches, and retries while the store fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from reliable_cable.exceptions import StoreError
from reliable_cable.stores.clock import StoreClock
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore

logger = logging.getLogger("reliable_cable")

#: How long, in seconds, to collect changed sessions before they are written together.
SAVE_DELAY: Final = 0.05

#: How long, in seconds, to wait before the next attempt while the store fails.
RETRY_DELAY: Final = 1.0

#: How long, in seconds, `flush` waits for a write.
FLUSH_TIMEOUT: Final = 2.0

#: How long, in seconds, `save` waits for a write. The effect of a command is delayed meanwhile.
SAVE_TIMEOUT: Final = 8.0

#: The most records that are created and written at once. Other tasks of the event loop run between two batches.
SAVE_SIZE: Final = 100

#: A session id that no session has. It is used to find out whether the store responds.
UNUSED_ID: Final = "-"


class LiveSession(Protocol):
    """A connection whose session can be restored."""

    @property
    def sid(self) -> str:
        """The session's id."""

    @property
    def sids(self) -> Collection[str]:
        """The session's id and the ids of the former sessions that it continues."""

    def record(self) -> SessionRecord:
        """Return the session's present record."""


@dataclass(frozen=True, slots=True)
class _KeptRecord:
    """A pending record that has no live session in this process.

    Args:
        record: the record to write.
        deadline: when it will have expired, by the monotonic clock.
        written: called after the record has been written.
    """

    record: SessionRecord
    deadline: float
    written: Callable[[], None] | None


class SessionWriter:
    """Writes pending session records, one batch after another, on one event loop.

    While the store fails, everything stays pending and is retried every `RETRY_DELAY` seconds.

    Args:
        store: the session store.
        clock: the store's clock, which must be measured before records are created.
        live: the live sessions of this process, by session id.
    """

    def __init__(self, store: SessionStore, clock: StoreClock, live: Mapping[str, LiveSession]) -> None:
        self._store = store
        self._clock = clock
        self._live = live
        #: Live sessions whose records must be written.
        self._changed: dict[str, LiveSession] = {}
        #: Records of other sessions that must be written.
        self._kept: dict[str, _KeptRecord] = {}
        #: Ids of sessions whose records must be deleted.
        self._deletions: set[str] = set()
        #: Ids of live sessions that the store may have a record of, because a write was attempted.
        self._attempted: set[str] = set()
        #: For each future that waits for the next write, whether it also waits for further attempts if the store fails.
        #: The result is whether the write succeeded.
        self._waiters: dict[asyncio.Future[bool], bool] = {}
        self._task: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()
        # Writes must not overlap, because an older record could replace a newer one.
        self._lock = asyncio.Lock()
        self._failing = False

    # -- what to write ------------------------------------------------------------------------------------------------

    def is_pending(self, sid: str) -> bool:
        """Return whether a record of this session is still to be written."""
        return sid in self._changed or sid in self._kept

    def awaits_deletion(self, sid: str) -> bool:
        """Return whether the records of this session are still to be deleted."""
        return sid in self._deletions

    def changed(self, *sessions: LiveSession) -> None:
        """Write the records of live sessions soon."""
        self._changed.update((session.sid, session) for session in sessions)
        self._start()

    def keep(self, sid: str, record: SessionRecord, written: Callable[[], None] | None = None) -> None:
        """Write a record that has no live session soon.

        Args:
            sid: the session's id.
            record: the record to write. It is dropped when its time to live ends before it could be written.
            written: called after the record has been written.
        """
        deadline = time.monotonic() + self._store.settings.sessions_ttl
        self._kept[sid] = _KeptRecord(record, deadline, written)
        self._start()

    def discard(self, sid: str) -> None:
        """Do not write the record of a session that is no longer live."""
        self._changed.pop(sid, None)
        self._attempted.discard(sid)

    def delete(self, sids: Collection[str]) -> None:
        """Delete the records of these sessions at once, even while the store is failing."""
        for sid in sids:
            self._kept.pop(sid, None)
        self._deletions.update(sids)
        self._start(urgent=True)

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def save(self, session: LiveSession) -> bool:
        """Write a live session's record now, and retry for `SAVE_TIMEOUT` seconds.

        Returns:
            False if the store may have an older record, and the new one could not be written in time.
        """
        self._changed[session.sid] = session
        if self._failing and session.sid not in self._attempted:
            # The store has no older record of this session, so no restore can bring back an older state.
            self._start()
            return True
        return bool(await self._wait(SAVE_TIMEOUT, retry=True))

    async def flush(self) -> None:
        """Write everything pending now, and wait for one attempt. Return at once while the store is failing."""
        if self._failing:
            self._start()
        elif await self._wait(FLUSH_TIMEOUT, retry=False) is None:
            self.report_failure("written", TimeoutError("the store does not respond"))

    async def _wait(self, seconds: float, *, retry: bool) -> bool | None:
        """Wait for the next write. Return whether it succeeded, or None if it did not end in time.

        Args:
            seconds: how long to wait.
            retry: whether to wait for further attempts if the store fails.
        """
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = retry
        self._start(urgent=not self._failing)
        try:
            await asyncio.wait([waiter], timeout=seconds)
            return waiter.result() if waiter.done() else None
        finally:
            waiter.cancel()
            self._waiters.pop(waiter, None)

    async def stop(self) -> None:
        """Attempt once to write everything pending, then stop retrying."""
        if self._has_work:
            await self._write()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def report_failure(self, action: str, error: Exception) -> None:
        """Log that the store has begun to fail, and check every `RETRY_DELAY` seconds whether it works again.

        Args:
            action: what could not be done with session records: "written", for example.
            error: the error of the store.
        """
        if not self._failing:
            logger.warning("Session records cannot be %s; retrying every %g s: %s", action, RETRY_DELAY, error)
        self._failing = True
        self._start()

    # -- writing ------------------------------------------------------------------------------------------------------

    @property
    def _has_work(self) -> bool:
        return bool(self._changed or self._kept or self._deletions or self._waiters)

    def _start(self, *, urgent: bool = False) -> None:
        """Start a write after `SAVE_DELAY`, after `RETRY_DELAY` while the store is failing, or at once if urgent."""
        if urgent:
            self._urgent.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._has_work or self._failing:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_DELAY if self._failing else SAVE_DELAY):
                        await self._urgent.wait()
                self._urgent.clear()
                await self._write()
        finally:
            self._task = None

    async def _write(self) -> None:
        """Write everything pending. After an error of the store, it is pending again."""
        async with self._lock:
            await self._clock.ready()
            waiters, self._waiters = self._waiters, {}
            changed, self._changed = self._changed, {}
            now = time.monotonic()
            self._kept = {sid: kept for sid, kept in self._kept.items() if kept.deadline > now}
            kept, deletions = dict(self._kept), set(self._deletions)
            try:
                await self._write_all(kept, changed, deletions)
            except StoreError as error:
                still_live = {sid: session for sid, session in changed.items() if sid in self._live}
                self._changed = still_live | self._changed
                self._waiters |= {waiter: True for waiter, retry in waiters.items() if retry and not waiter.done()}
                _set_results([waiter for waiter, retry in waiters.items() if not retry], saved=False)
                self.report_failure("written", error)
            except Exception:
                # A retry would fail, too. A client whose session has no record subscribes again.
                logger.exception("%d session records could not be written.", len(kept) + len(changed))
                self._end_write(kept, deletions, waiters, saved=False)
            else:
                self._end_write(kept, deletions, waiters, saved=True)

    async def _write_all(
        self, kept: Mapping[str, _KeptRecord], changed: Mapping[str, LiveSession], deletions: Collection[str]
    ) -> None:
        if self._failing:
            # Ask first whether the store works again. `save` relies on this: while the store is failing, it is sent no
            # records of new sessions.
            await self._store.atouch([UNUSED_ID])
        pending: list[tuple[str, _KeptRecord | LiveSession]] = [*kept.items(), *changed.items()]
        for start in range(0, len(pending), SAVE_SIZE):
            if records := self._records(pending[start : start + SAVE_SIZE]):
                self._attempted |= records.keys() & self._live.keys()
                await self._store.asave(records)
        if deletions:
            await self._store.adelete(deletions)

    def _records(self, pending: Iterable[tuple[str, _KeptRecord | LiveSession]]) -> dict[str, SessionRecord]:
        records: dict[str, SessionRecord] = {}
        for sid, item in pending:
            if isinstance(item, _KeptRecord):
                records[sid] = item.record
            # A session that has ended since then has passed its last record to `keep`.
            elif self._live.get(sid) is item and (record := make_record(item)) is not None:
                records[sid] = record
        return records

    def _end_write(
        self,
        kept: Mapping[str, _KeptRecord],
        deletions: Collection[str],
        waiters: Iterable[asyncio.Future[bool]],
        *,
        saved: bool,
    ) -> None:
        _set_results(waiters, saved=saved)
        # A record that was replaced during the write is still pending.
        self._kept = {sid: item for sid, item in self._kept.items() if kept.get(sid) is not item}
        self._deletions.difference_update(deletions)
        if saved:
            for item in kept.values():
                if item.written is not None:
                    item.written()
        if self._failing:
            self._failing = False
            logger.info("The session store works again.")


def _set_results(waiters: Iterable[asyncio.Future[bool]], *, saved: bool) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(saved)


def make_record(session: LiveSession) -> SessionRecord | None:
    """Return a session's present record. If that fails, log the error and return None: only this session is lost."""
    try:
        return session.record()
    except Exception:
        logger.exception("The record of a session could not be created; the session cannot be restored.")
        return None
