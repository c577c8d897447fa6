"""Writes, loads, refreshes and deletes the session records of an event loop's connections."""

import asyncio
from typing import Final

from reliable_cable.concurrency.tasks import BackgroundTasks, cancel
from reliable_cable.exceptions import StoreError
from reliable_cable.identity import Identity
from reliable_cable.stores.clock import StoreClock
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore

from .revocations import without_revoked
from .session_losses import LossDetector
from .session_sweep import SessionSweep
from .session_writer import LiveSession, SessionWriter, make_record

#: The maximum time, in seconds, to load session records. If it takes longer, the clients subscribe again.
LOAD_TIMEOUT: Final = 2.0


class SessionRecords(SessionWriter):
    """Updates the stored records of live sessions, so that any server can restore the sessions.

    Each object must be used in only one event loop. If `SESSIONS_TTL` is 0, nothing is stored.

    Args:
        store: the session store.
        clock: the store's clock, for the times in records. By default, a new clock is created.
    """

    def __init__(self, store: SessionStore, clock: StoreClock | None = None) -> None:
        super().__init__(store, clock)
        self.enabled = store.settings.sessions_ttl > 0
        #: Detects whether the store has lost records.
        self.losses = LossDetector(self)
        self._sweep = SessionSweep(store)
        self._loads = BackgroundTasks()
        #: The id and identity of each session whose record is read by the next load, and a future for the record.
        self._wanted: list[tuple[str, Identity, asyncio.Future[SessionRecord | None]]] = []

    # -- live sessions ------------------------------------------------------------------------------------------------

    def add(self, session: LiveSession) -> None:
        """Add a live session. Its record is refreshed until `drop`, `discard` or `void` is called."""
        if self.enabled:
            self.live[session.sid] = session
            self.losses.start()
            self._sweep.start()

    async def drop(self, session: LiveSession) -> None:
        """Write the last record of a session whose connection has ended. After its TTL, the record expires."""
        if self.live.get(session.sid) is not session:
            return
        self.discard(session)
        record = make_record(session)
        if record is not None:
            self.keep(session.sid, record)
        await self.flush()

    def discard(self, session: LiveSession) -> None:
        """Remove a live session without writing its record."""
        super().discard(session)
        self.losses.end_if_idle()

    def void(self, session: LiveSession) -> None:
        """Remove a session and delete its records, so that it cannot be restored."""
        self.discard(session)
        if self.enabled:
            self.delete(session.sids)

    # -- restoring ----------------------------------------------------------------------------------------------------

    async def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the newest record of a session, without the subscriptions that were revoked.

        Args:
            sid: the id of the session.
            identity: the identity that the record must have.

        Returns:
            The record; None if there is no such record, or if the store failed or did not respond in time. The client
            then subscribes again, with its own positions.
        """
        if not self.enabled:
            return None
        try:
            if self.is_pending(sid):
                # The last write has failed or has not been made yet, but the store may work now.
                async with asyncio.timeout(LOAD_TIMEOUT):
                    await self.flush(retry=True)
            record = await self._load(sid, identity)
        except (StoreError, TimeoutError) as error:
            self.report_failure("loaded", error)
            return None
        return None if sid in self._deletions else record

    async def _load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Load a record, together with all records that are requested in the same iteration of the event loop."""
        if not self._wanted:
            self._loads.spawn(self._load_wanted())
        result: asyncio.Future[SessionRecord | None] = asyncio.get_running_loop().create_future()
        self._wanted.append((sid, identity, result))
        return await result

    async def _load_wanted(self) -> None:
        wanted, self._wanted = self._wanted, []
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                records = await self.store.aload_many([(sid, identity) for sid, identity, _ in wanted])
                # Revocations are read after the records, so that a revocation during the reads is found.
                records = await without_revoked(self.store, records)
        except Exception as error:
            for *_, result in wanted:
                if not result.done():
                    result.set_exception(error)
            return
        for (*_, result), record in zip(wanted, records, strict=True):
            if not result.done():  # the caller may have been cancelled
                result.set_result(record)

    async def take_over(self, session: LiveSession, sid: str, record: SessionRecord) -> None:
        """Add a session that has restored a former session, and write new records of both sessions together.

        Args:
            session: the session of the new connection.
            sid: the id of the former session, which was restored.
            record: the new record for the former session.
        """
        self.add(session)
        self.changed(session)
        self.keep(sid, record)
        await self.flush()

    async def stop(self) -> None:
        """Attempt once to write the pending records, then stop all tasks."""
        await super().stop()
        await self.losses.stop()
        await self._sweep.stop()
        await cancel(*self._loads.pending)
