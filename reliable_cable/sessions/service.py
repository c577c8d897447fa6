"""Keeps the records of this process's live sessions up to date, in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from .base import SessionRecord, SessionStore

logger = logging.getLogger("reliable_cable")

#: Seconds within which changed sessions are written together.
SAVE_DELAY = 0.05


class LiveSession(Protocol):
    """A connection whose session can be restored."""

    sid: str

    def record(self) -> SessionRecord:
        """Return what a restore needs, as of now."""


class SessionService:
    """Writes changed sessions soon, and touches all of them before they expire.

    A session that changes is written within `SAVE_DELAY`: if the process is killed before, the client subscribes afresh
    with the positions it knows, and loses nothing. Used from one event loop.

    Args:
        store: keeps the records.
    """

    def __init__(self, store: SessionStore) -> None:
        self.store = store
        self.enabled = store.settings.sessions_ttl > 0
        self._live: dict[str, LiveSession] = {}
        self._changed: dict[str, LiveSession] = {}
        #: Sessions that may not be restored, and whose records are still to be deleted.
        self._void: set[str] = set()
        self._saving: asyncio.Task[None] | None = None
        self._touching: asyncio.TimerHandle | None = None
        self._touches: set[asyncio.Task[None]] = set()
        #: One save at a time: an older record must not be written over a newer one.
        self._lock = asyncio.Lock()

    def add(self, session: LiveSession) -> None:
        """Keep a session's record alive from now on."""
        if self.enabled:
            self._live[session.sid] = session
            self._schedule_touch()

    def changed(self, session: LiveSession) -> None:
        """Write a session's record soon."""
        if session.sid in self._live:
            self._changed[session.sid] = session
            if self._saving is None:
                self._saving = asyncio.get_running_loop().create_task(self._save_soon())

    async def drop(self, session: LiveSession) -> None:
        """Write a session's record for the last time: its time to live begins."""
        if self._live.pop(session.sid, None) is None:
            return
        self._changed.pop(session.sid, None)
        if not self._live and self._touching is not None:
            self._touching.cancel()
            self._touching = None
        await self._save(_records({session.sid: session}))

    def discard(self, session: LiveSession) -> None:
        """Keep a session's record no longer up to date."""
        self._live.pop(session.sid, None)
        self._changed.pop(session.sid, None)

    def void(self, session: LiveSession) -> None:
        """Let nobody restore a session, from now on and not only when its record has been deleted: see `delete`."""
        self.discard(session)
        self._void.add(session.sid)

    async def load(self, sid: str) -> SessionRecord | None:
        """Return the newest record of a session."""
        if sid in self._void:
            return None
        changed = self._changed.get(sid)
        if changed is not None:
            return changed.record()
        return await self.store.aload(sid) if self.enabled else None

    async def delete(self, sid: str) -> None:
        """Delete the record of a session that may not be restored."""
        try:
            async with self._lock:  # after a save that is under way
                await self.store.adelete([sid])
        except Exception:
            logger.exception("A session record could not be deleted; it expires by itself.")
        else:
            self._void.discard(sid)

    async def _save_soon(self) -> None:
        await asyncio.sleep(SAVE_DELAY)
        changed, self._changed, self._saving = self._changed, {}, None
        if changed:
            await self._save(_records(changed))

    async def _save(self, records: dict[str, SessionRecord]) -> None:
        try:
            async with self._lock:
                await self.store.asave(records)
        except Exception:
            # Without its record a client is not restored: it subscribes afresh, with its positions.
            logger.exception("%d session records could not be saved.", len(records))

    def _schedule_touch(self) -> None:
        if self._touching is None:
            interval = self.store.settings.sessions_ttl / 3
            self._touching = asyncio.get_running_loop().call_later(interval, self._touch)

    def _touch(self) -> None:
        self._touching = None
        if self._live:
            task = asyncio.get_running_loop().create_task(self._touch_all(list(self._live)))
            self._touches.add(task)
            task.add_done_callback(self._touches.discard)
            self._schedule_touch()

    async def _touch_all(self, sids: list[str]) -> None:
        try:
            await self.store.atouch(sids)
        except Exception:
            logger.exception("%d session records could not be touched.", len(sids))


def _records(sessions: Mapping[str, LiveSession]) -> dict[str, SessionRecord]:
    """Return the sessions' records; one that cannot be made costs only its own session its restore."""
    records: dict[str, SessionRecord] = {}
    for sid, session in sessions.items():
        try:
            records[sid] = session.record()
        except Exception:
            logger.exception("A session record could not be made.")
    return records
