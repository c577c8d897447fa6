"""Detects a loss of data in the session store, and writes lost records again."""

import asyncio
import math
import secrets
import time
from functools import partial
from typing import Final

from reliable_cable.concurrency.tasks import cancel, wait_and_clear
from reliable_cable.exceptions import StoreError
from reliable_cable.logs import logger
from reliable_cable.stores.sessions.base import SessionRecord

from .session_writer import SessionWriter

#: The number of checks in the time to live of records.
CHECKS_PER_TTL: Final = 3

#: The delay, in seconds, between a call of `suspect` and the check.
CHECK_DELAY: Final = 0.05

#: How long, in seconds, a loss of data is remembered. Several parts of the hub may notice the same loss one after
#: another, and each of them calls `refresh`.
LOSS_MEMORY: Final = 60.0

#: The prefix of the ids of witness records.
WITNESS_PREFIX: Final = "witness-"


class LossDetector:
    """Keeps the records of live sessions from expiring, and detects a loss of data in the store.

    The records of live sessions cannot prove that nothing was lost, because a record may have been written again after
    the loss. So the detector also writes a *witness*, which is a record that is written only once. If the witness is
    missing, the store has lost data. Each check writes a new witness, because a store that was recovered from a backup
    may still have the former witness.

    Args:
        writer: the session writer, which has the live sessions and writes lost records again.
    """

    def __init__(self, writer: SessionWriter) -> None:
        self._writer = writer
        self._store = writer.store
        #: The id of the newest witness in the store; `""` if the store has no witness.
        self._witness = ""
        #: The id of the newest witness that was passed to the writer.
        self._next_witness = ""
        self._lost_at = -math.inf
        #: An event that is set if the next check must begin soon, or if the checks may end.
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to check the records regularly. The checks end when there are no more live sessions."""
        if self._task is None:
            # An earlier witness may have expired while no checks were made.
            self._witness = ""
            self._renew_witness()
            self._due.clear()
            self._task = asyncio.get_running_loop().create_task(self._run())

    def end_if_idle(self) -> None:
        """End the checks if there are no live sessions."""
        if not self._writer.live:
            self._due.set()

    def suspect(self) -> None:
        """Check soon whether the store has lost data."""
        if self._store.may_lose_data and self._writer.live:
            self._due.set()

    async def refresh(self) -> bool:
        """Check for a loss of data, renew the TTL of the records of all live sessions, and write missing records again.

        Returns:
            True if it is certain that the store has lost no data in the last `LOSS_MEMORY` seconds.

        Raises:
            StoreError: the store could not be reached.
        """
        witness = self._witness
        sids = [sid for sid in self._writer.live if not self._writer.is_pending(sid)]
        missing = await self._store.atouch([*sids, witness] if witness else sids)
        lost = [sid for sid in missing if sid in self._writer.live and not self._writer.is_pending(sid)]
        if lost:
            logger.warning("The session store has lost %d records; they are written again.", len(lost))
        for sid in lost:
            self._writer.changed(self._writer.live[sid])
        if not self._store.may_lose_data:
            return True
        if witness in missing:
            self._lost_at = time.monotonic()
        self._renew_witness()
        return bool(witness) and time.monotonic() - self._lost_at > LOSS_MEMORY

    async def stop(self) -> None:
        """Cancel the checks."""
        await cancel(self._task)
        self._task = None

    async def _run(self) -> None:
        try:
            while True:
                await wait_and_clear(self._due, self._store.settings.sessions_ttl / CHECKS_PER_TTL)
                if not self._writer.live:
                    break
                await asyncio.sleep(CHECK_DELAY)
                self._due.clear()
                try:
                    await self.refresh()
                except StoreError as error:
                    self._writer.report_failure("refreshed", error)
                except Exception:
                    logger.exception("Session records could not be checked; they are checked again later.")
        finally:
            self._task = None

    def _renew_witness(self) -> None:
        if self._store.may_lose_data and not self._writer.is_pending(self._next_witness):
            self._next_witness = WITNESS_PREFIX + secrets.token_hex(8)
            written = partial(self._witness_written, self._next_witness)
            self._writer.keep(self._next_witness, SessionRecord({}, 0), written)

    def _witness_written(self, witness: str) -> None:
        self._witness = witness
