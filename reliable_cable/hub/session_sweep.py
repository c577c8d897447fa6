"""Deletes expired session records regularly, because some stores do not delete them by themselves."""

import asyncio
import random
from typing import Final

from reliable_cable.concurrency.tasks import cancel
from reliable_cable.exceptions import StoreError
from reliable_cable.logs import logger
from reliable_cable.stores.sessions.base import SessionStore

#: The maximum time, in seconds, from the end of a sweep to the next sweep on the same event loop.
SWEEP_INTERVAL: Final = 60.0
#: The maximum number of records that are deleted together. It is small, because broadcasts may have to wait for the
#: database during a deletion.
SWEEP_SIZE: Final = 200
#: The pause, in seconds, between two deletions of a sweep.
SWEEP_PAUSE: Final = 0.5


class SessionSweep:
    """Runs regular sweeps, which delete the expired records of a session store.

    Args:
        store: the session store.
    """

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        #: The timer that starts the next sweep; None before `start`.
        self._timer: asyncio.TimerHandle | None = None
        #: The task of the current sweep; None between two sweeps.
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sweep the store regularly."""
        if self._timer is None:
            self._set_timer()

    async def stop(self) -> None:
        """Cancel the timer, and the current sweep, if any."""
        await cancel(self._task)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        delay = SWEEP_INTERVAL * random.uniform(0.5, 1)  # noqa: S311 - spreads the servers
        self._timer = asyncio.get_running_loop().call_later(delay, self._begin)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        try:
            while await self._store.aprune(limit=SWEEP_SIZE) >= SWEEP_SIZE:  # noqa: ASYNC110 - other work runs meanwhile
                await asyncio.sleep(SWEEP_PAUSE)
        except StoreError as error:
            logger.warning("Expired sessions could not be deleted; this is retried later: %s", error)
        except Exception:
            logger.exception("Expired sessions could not be deleted; this is retried later.")
        finally:
            self._task = None
            self._set_timer()
