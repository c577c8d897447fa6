"""Broadcasts and saves an answer that is written in a transaction, such as that of a `TestCase`.

No other thread sees the uncommitted row of the run. So the code that writes the answer also saves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from reliable_cable.concurrency.threads import run_store_write
from reliable_cable.logs import logger

from .attempt import Attempt
from .stopping import StopRequests

#: The interval, in seconds, at which an async block broadcasts and saves its answer.
INTERVAL: Final = 0.02


class InlinePump:
    """Takes the place of `Pump` for one attempt, in the thread of the transaction.

    Args:
        attempt: the attempt, after its method `begin` was called.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._stop_requests = StopRequests()

    def wake(self) -> None:
        """Broadcast and save the answer if this is due."""
        self._attempt.step()

    def check(self) -> None:
        """Broadcast and save the answer if this is due, and find out whether the run was stopped."""
        self._attempt.step()
        if not self._attempt.stopped and self._stop_requests.find([self._attempt.run.pk]):
            self._attempt.stopped = True


class AsyncInlinePump:
    """Takes the place of `Pump` for one attempt in async code, in the thread of Django's ORM calls.

    Args:
        attempt: the attempt, after its method `begin` was called.
        ended: called once, when the run was stopped or no longer belongs to its writer.
    """

    def __init__(self, attempt: Attempt, ended: Callable[[], object]) -> None:
        self._attempt = attempt
        self._pump = InlinePump(attempt)
        self._ended = ended
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def wake(self) -> None:
        """Do nothing. The task checks regularly whether a broadcast is due."""

    def close(self) -> None:
        """End the task."""
        self._task.cancel()

    async def _serve(self) -> None:
        attempt = self._attempt
        while not (attempt.stopped or attempt.lost):
            await asyncio.sleep(INTERVAL)
            try:
                await run_store_write(self._pump.check)
            except Exception:
                logger.exception("The run %s could not be written.", attempt.run.pk)
                attempt.lost = True
        self._ended()
