"""The session records of this process's connections: when they are written, loaded, refreshed and deleted."""

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

#: How long, in seconds, a load of session records may take. If it takes longer, the returning clients subscribe again.
LOAD_TIMEOUT: Final = 2.0


class SessionRecords(SessionWriter):
    """Keeps the stored records of live sessions up to date, for restores on any server.

    An object must be used on one event loop only. If `SESSIONS_TTL` is 0, nothing is stored.

    Args:
        store: the session store.
        clock: the store's clock, for the times in records. None creates one.
    """

    def __init__(self, store: SessionStore, clock: StoreClock | None = None) -> None:
        super().__init__(store, clock)
        self.enabled = store.settings.sessions_ttl > 0
        #: Detects whether the store has lost records.
        self.losses = LossDetector(self)
        self._sweep = SessionSweep(store)
        self._loads = BackgroundTasks()
        #: The sessions that the next load will return, and a future for the record of each.
        self._wanted: list[tuple[str, Identity, asyncio.Future[SessionRecord | None]]] = []

    # -- live sessions ------------------------------------------------------------------------------------------------

    def add(self, session: LiveSession) -> None:
        """Add a live session. Its record is refreshed until the session is dropped, discarded or voided."""
        if self.enabled:
            self.live[session.sid] = session
            self.losses.start()
            self._sweep.start()

    async def drop(self, session: LiveSession) -> None:
        """Write the last record of a session whose connection has ended. The record's time to live begins."""
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
        """Remove a session, and delete its records. The session can no longer be restored in this process."""
        self.discard(session)
        if self.enabled:
            self.delete(session.sids)

    # -- restoring ----------------------------------------------------------------------------------------------------

    async def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the newest record of a session that belongs to this identity, without revoked subscriptions.

        None means that there is no such record, or that the store did not respond in time. The client then subscribes
        again, with its own positions.
        """
        if not self.enabled:
            return None
        try:
            if self.is_pending(sid):
                # The store may work again, although the last write failed.
                async with asyncio.timeout(LOAD_TIMEOUT):
                    await self.flush(retry=True)
            record = await self._load(sid, identity)
        except (StoreError, TimeoutError) as error:
            self.report_failure("loaded", error)
            return None
        return None if sid in self._deletions else record

    async def _load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Load a record together with all others that are requested in the same iteration of the event loop."""
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
            if not result.done():  # its caller may have been cancelled
                result.set_result(record)

    async def take_over(self, session: LiveSession, sid: str, record: SessionRecord) -> None:
        """Add a restored session, and write its record together with that of the former session.

        Args:
            session: the session of the new connection.
            sid: the id of the former session, which the new one continues.
            record: the new record of that former session.
        """
        self.add(session)
        self.changed(session)
        self.keep(sid, record)
        await self.flush()

    async def stop(self) -> None:
        """Write pending records once, and stop all tasks."""
        await super().stop()
        await self.losses.stop()
        await self._sweep.stop()
        await cancel(*self._loads.pending)
