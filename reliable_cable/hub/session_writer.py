"""Writes session records to the store in batches, and retries while the store fails."""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from reliable_cable.concurrency.retrying import BACKGROUND_RETRY_DELAY
from reliable_cable.concurrency.tasks import cancel, wait_and_clear
from reliable_cable.exceptions import StoreError
from reliable_cable.logs import logger
from reliable_cable.stores.clock import StoreClock
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore

#: How long, in seconds, changed sessions are collected before they are written together.
SAVE_DELAY: Final = 0.05

#: How long, in seconds, `flush` waits for a write.
FLUSH_TIMEOUT: Final = 2.0

#: How long, in seconds, `save` waits for a write. During the wait, the client does not see the effect of its command.
SAVE_TIMEOUT: Final = 8.0

#: The maximum number of records in a batch. Between two batches, other tasks of the event loop run.
SAVE_SIZE: Final = 100

#: The approximate maximum size of the records in a batch, in bytes.
SAVE_BYTES: Final = 1024 * 1024

#: The approximate maximum size, in bytes, of the records of ended sessions that are kept in memory while the store
#: fails.
MAX_KEPT_SIZE: Final = 64 * 1024 * 1024

#: An id that no session has. A call with this id tests whether the store responds.
UNUSED_ID: Final = "-"


class LiveSession(Protocol):
    """The part of a connection that writers of session records use."""

    @property
    def sid(self) -> str:
        """The session's id."""

    @property
    def sids(self) -> Collection[str]:
        """The session's id, and the ids of the former sessions that it has restored."""

    def record(self) -> SessionRecord:
        """Return the session's current record."""


@dataclass(slots=True, eq=False)
class _Pending:
    """A record that must be written.

    Args:
        make: a function that is called before the write. It returns the record; None if there is nothing to write.
        deadline: the time at which the record expires, by the monotonic clock.
        written: a function that is called when the store has the record; None if nothing is called.
        size: the approximate size of the record, in bytes; 0 if the record is not in memory before the write.
    """

    make: Callable[[], SessionRecord | None]
    deadline: float = math.inf
    written: Callable[[], object] | None = None
    size: int = 0


class SessionWriter:
    """Writes the records of an event loop's sessions, one batch after another.

    While the store fails, records remain pending, and writes are retried every `BACKGROUND_RETRY_DELAY` seconds. The
    total size of the pending records of ended sessions is limited to `MAX_KEPT_SIZE`.

    Args:
        store: the session store.
        clock: the store's clock. Each write waits until it has been measured. By default, a new clock is created.
    """

    def __init__(self, store: SessionStore, clock: StoreClock | None = None) -> None:
        self.store = store
        self._clock = clock or StoreClock(store)
        #: The live sessions of this process, by session id.
        self.live: dict[str, LiveSession] = {}
        #: The records that must be written, by session id. A record is removed after the write, unless it was replaced
        #: during the write.
        self._pending: dict[str, _Pending] = {}
        #: The ids of sessions whose records must be deleted.
        self._deletions: set[str] = set()
        #: The ids of live sessions for which a write was attempted, so that the store may have a record.
        self._attempted: set[str] = set()
        #: A future for the result of the next write. The result is the ids of the sessions whose records could not be
        #: written. If the store has failed, so that the write will be retried, the result is None.
        self._next: asyncio.Future[Collection[str] | None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()
        self._failing = False

    # -- scheduling ---------------------------------------------------------------------------------------------------

    def is_pending(self, sid: str) -> bool:
        """Return whether a record of this session must still be written."""
        return sid in self._pending

    def changed(self, session: LiveSession) -> None:
        """Schedule a write of a session's record. Nothing happens if the session is not live."""
        if session.sid in self.live:
            self._pending[session.sid] = _Pending(partial(self._record_of, session))
            self._start()

    def keep(self, sid: str, record: SessionRecord, written: Callable[[], object] | None = None) -> None:
        """Schedule a write of a record that belongs to no live session.

        A record that expires before the write is dropped.

        Args:
            sid: the id of the session.
            record: the record to write.
            written: a function that is called when the store has the record.
        """
        deadline = time.monotonic() + self.store.settings.sessions_ttl
        self._pending[sid] = _Pending(lambda: record, deadline, written, record.size)
        self._start()

    def discard(self, session: LiveSession) -> None:
        """Remove a live session without writing its record."""
        self.live.pop(session.sid, None)
        self._pending.pop(session.sid, None)
        self._attempted.discard(session.sid)

    def delete(self, sids: Collection[str]) -> None:
        """Start to delete the records of sessions without delay, even if the store has failed before."""
        for sid in sids:
            self._pending.pop(sid, None)
        self._deletions.update(sids)
        self._start(urgent=True)

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def save(self, session: LiveSession) -> bool:
        """Write a live session's record before its client sees the effect of a change.

        Returns:
            True if the client may see the effect. It is False if the store may have an older record, and the new record
            could not be written within `SAVE_TIMEOUT` seconds.
        """
        self.changed(session)
        if session.sid not in self.live or (self._failing and session.sid not in self._attempted):
            # The store has no record of this session. So no restore can return to the state before the change.
            return True
        loop = asyncio.get_running_loop()
        until = loop.time() + SAVE_TIMEOUT
        unwritten: Collection[str] | None = None
        while unwritten is None:
            result = self._next_write()
            await asyncio.wait([result], timeout=until - loop.time())
            unwritten = result.result() if result.done() else (session.sid,)
        return session.sid not in unwritten

    async def flush(self, *, retry: bool = False) -> None:
        """Write all pending records now, and wait for one attempt.

        Args:
            retry: whether to write immediately even if the last write has failed. If False, `flush` does not wait after
                a failure.
        """
        if self._failing and not retry:
            self._start()
            return
        result = self._next_write()
        if retry:
            self._start(urgent=True)
        await asyncio.wait([result], timeout=FLUSH_TIMEOUT)
        if not result.done():
            self.report_failure("written", TimeoutError("the store does not respond"))

    def _next_write(self) -> asyncio.Future[Collection[str] | None]:
        """Start a write, and return a future for its result.

        Several callers share the future. So they must use `asyncio.wait`, which does not cancel the future if a caller
        is cancelled.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        self._start(urgent=not self._failing)
        return self._next

    async def stop(self) -> None:
        """Attempt once to write all pending records, then stop."""
        if self._has_work:
            self._urgent.set()
            await asyncio.wait([self._next_write()])
        await cancel(self._task)
        self._task = None

    def report_failure(self, action: str, error: Exception) -> None:
        """Log the first failure of the store, and check regularly whether the store works again.

        Args:
            action: the end of the sentence "Session records cannot be …", for example "written".
            error: the error of the store.
        """
        if not self._failing:
            logger.warning(
                "Session records cannot be %s; retrying every %g s: %s", action, BACKGROUND_RETRY_DELAY, error
            )
        self._failing = True
        self._start()

    # -- writing ------------------------------------------------------------------------------------------------------

    @property
    def _has_work(self) -> bool:
        return bool(self._pending or self._deletions or self._next)

    def _start(self, *, urgent: bool = False) -> None:
        """Start a write after `SAVE_DELAY`. The delay is longer while the store fails. An urgent write has no delay."""
        if urgent:
            self._urgent.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._has_work or self._failing:
                await wait_and_clear(self._urgent, BACKGROUND_RETRY_DELAY if self._failing else SAVE_DELAY)
                await self._write()
        finally:
            self._task = None

    async def _write(self) -> None:
        """Write all pending records. After an error of the store, they remain pending (see `_give_up_oldest`)."""
        await self._clock.ready()
        result, self._next = self._next, None
        now = time.monotonic()
        pending = {sid: item for sid, item in self._pending.items() if item.deadline > now}
        self._pending, deletions = pending.copy(), self._deletions.copy()
        unwritten: Collection[str] | None = None
        try:
            unwritten = await self._write_all(list(pending.items()), deletions)
        except StoreError as error:
            self.report_failure("written", error)
            self._give_up_oldest()
        except Exception:
            # A retry would fail, too. If a session has no record, its client subscribes again.
            logger.exception("%d session records could not be written.", len(pending))
            unwritten = pending.keys()
        if unwritten is not None:
            for sid, item in pending.items():
                if item.written is not None and sid not in unwritten:
                    item.written()
            # A record that was replaced during the write is still pending.
            self._pending = {sid: item for sid, item in self._pending.items() if pending.get(sid) is not item}
            self._deletions -= deletions
            if self._failing:
                self._failing = False
                logger.info("The session store works again.")
        if result is not None:
            result.set_result(unwritten)

    def _give_up_oldest(self) -> None:
        """Drop the oldest records of ended sessions, until at most `MAX_KEPT_SIZE` bytes of records remain."""
        kept = sum(item.size for item in self._pending.values())
        given_up = []
        for sid, item in self._pending.items():
            if kept <= MAX_KEPT_SIZE:
                break
            if item.size:
                given_up.append(sid)
                kept -= item.size
        for sid in given_up:
            del self._pending[sid]
        if given_up:
            logger.warning(
                "%d session records are dropped, because more than %d bytes are pending for the session store. "
                "Their clients subscribe again.",
                len(given_up),
                MAX_KEPT_SIZE,
            )

    async def _write_all(self, pending: list[tuple[str, _Pending]], deletions: Collection[str]) -> set[str]:
        """Write and delete records. Return the ids of the sessions whose records could not be written.

        Args:
            pending: the records to write, by session id.
            deletions: the ids of the sessions whose records are deleted.
        """
        if self._failing:
            # While the store still fails, this call fails, too, so that no record is written. `save` relies on this:
            # while the store fails, `save` returns True for new sessions, because they have no record in the store.
            await self.store.atouch([UNUSED_ID])
        unwritten: set[str] = set()
        for records in _batches(pending):
            self._attempted |= records.keys() & self.live.keys()
            unwritten |= await self._save(records)
        if deletions:
            await self.store.adelete(deletions)
        return unwritten

    async def _save(self, records: Mapping[str, SessionRecord]) -> set[str]:
        """Save records. If a record cannot be encoded, save the others. Return the session ids of unsaved records."""
        try:
            await self.store.asave(records)
        except StoreError:
            raise
        except Exception:
            if len(records) > 1:
                return set().union(*[await self._save({sid: record}) for sid, record in records.items()])
            logger.exception("A session record could not be written; the session cannot be restored.")
            return set(records)
        return set()

    def _record_of(self, session: LiveSession) -> SessionRecord | None:
        # If the session has ended, its last record was passed to `keep`.
        return make_record(session) if self.live.get(session.sid) is session else None


def _batches(pending: Iterable[tuple[str, _Pending]]) -> Iterator[dict[str, SessionRecord]]:
    """Create the records, and yield them in batches, which are limited by `SAVE_SIZE` and `SAVE_BYTES`."""
    records: dict[str, SessionRecord] = {}
    size = 0
    for sid, item in pending:
        record = item.make()
        if record is None:
            continue
        records[sid] = record
        size += record.size
        if len(records) >= SAVE_SIZE or size >= SAVE_BYTES:
            yield records
            records, size = {}, 0
    if records:
        yield records


def make_record(session: LiveSession) -> SessionRecord | None:
    """Return a session's current record. If it cannot be created, log the error and return None.

    So the records of other sessions are still saved.
    """
    try:
        return session.record()
    except Exception:
        logger.exception("The record of a session could not be created; the session cannot be restored.")
        return None
