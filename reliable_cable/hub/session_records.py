"""The session records of this process's connections: when they are written, loaded, refreshed and deleted."""

from __future__ import annotations

import asyncio
from typing import Final

from reliable_cable.exceptions import StoreError
from reliable_cable.identity import Identity
from reliable_cable.stores.clock import StoreClock
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore

from .session_loader import SessionLoader
from .session_losses import LossDetector
from .session_writer import LiveSession, SessionWriter, make_record

#: How long, in seconds, a returning client waits until its record is loaded. It then subscribes again instead.
LOAD_TIMEOUT: Final = 2.0


class SessionRecords:
    """Keeps the stored records of live sessions up to date, for restores on any server.

    Used on one event loop. With `SESSIONS_TTL` 0, nothing is stored.

    Args:
        store: the session store.
        clock: the store's clock, for the times in records. None creates one.
    """

    def __init__(self, store: SessionStore, clock: StoreClock | None = None) -> None:
        self.store = store
        self.enabled = store.settings.sessions_ttl > 0
        self._live: dict[str, LiveSession] = {}
        self._writer = SessionWriter(store, clock or StoreClock(store), self._live)
        self._loader = SessionLoader(store)
        self._losses = LossDetector(store, self._live, self._writer)

    # -- live sessions ------------------------------------------------------------------------------------------------

    def add(self, session: LiveSession) -> None:
        """Add a live session. Its record is refreshed until the session is dropped, discarded or voided."""
        if self.enabled:
            self._live[session.sid] = session
            self._losses.start()

    def changed(self, session: LiveSession) -> None:
        """Write a live session's record soon."""
        if session.sid in self._live:
            self._writer.changed(session)

    async def save(self, session: LiveSession) -> bool:
        """Write a live session's record before its client sees the effect of a change.

        Returns:
            Whether the client may see the effect. False means that the store may have an older record, and the new one
            could not be written within `SAVE_TIMEOUT` seconds.
        """
        return session.sid not in self._live or await self._writer.save(session)

    async def drop(self, session: LiveSession) -> None:
        """Write the last record of a session whose connection has ended. Its time to live begins."""
        if self._live.get(session.sid) is not session:
            return
        self.discard(session)
        record = make_record(session)
        if record is not None:
            self._writer.keep(session.sid, record)
        await self._writer.flush()

    def discard(self, session: LiveSession) -> None:
        """Remove a live session without writing its record."""
        self._live.pop(session.sid, None)
        self._writer.discard(session.sid)
        self._losses.end_if_idle()

    def void(self, session: LiveSession) -> None:
        """Remove a session, and delete its records. It cannot be restored here even before they are deleted."""
        self.discard(session)
        if self.enabled:
            self._writer.delete(session.sids)

    # -- restoring ----------------------------------------------------------------------------------------------------

    async def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the newest record of a session that belongs to this identity.

        None means that there is no such record, or that the store did not respond in time. The client then subscribes
        again, with its own positions.
        """
        if not self.enabled:
            return None
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                if self._writer.is_pending(sid):
                    await self._writer.flush()
                record = await self._loader.load(sid, identity)
        except (StoreError, TimeoutError) as error:
            self._writer.report_failure("loaded", error)
            return None
        return None if self._writer.awaits_deletion(sid) else record

    def keep(self, sid: str, record: SessionRecord) -> None:
        """Write the record of a session that is no longer live here."""
        self._writer.keep(sid, record)

    async def take_over(self, session: LiveSession, sid: str, record: SessionRecord) -> None:
        """Add a restored session, and write its record together with that of the session it continues.

        Args:
            session: the session of the new connection.
            sid: the id of the session that it continues.
            record: the new record of that former session.
        """
        self.add(session)
        self._writer.changed(session)
        self._writer.keep(sid, record)
        await self._writer.flush()

    # -- refreshing ---------------------------------------------------------------------------------------------------

    async def refresh(self) -> bool:
        """Refresh the records of all live sessions, and write those again that the store has lost.

        Returns:
            Whether the store is known to have lost nothing within the last minute.

        Raises:
            StoreError: the store could not be reached.
        """
        return await self._losses.refresh()

    def suspect(self) -> None:
        """Check soon whether the store has lost records."""
        self._losses.suspect()

    async def stop(self) -> None:
        """Write pending records once, and stop all tasks."""
        await self._writer.stop()
        await self._losses.stop()
        await self._loader.stop()
