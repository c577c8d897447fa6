"""The pump of a process: one background thread that broadcasts and saves the answers that tasks are writing."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from reliable_cable.concurrency.database_connections import with_kept_connections
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.concurrency.threads import submit_alone

from .attempt import Attempt
from .stopping import StopRequests

logger = logging.getLogger("reliable_cable")

#: The interval, in seconds, at which the database is asked whether runs were stopped.
STOP_INTERVAL: Final = 0.2


class _Served:
    """An attempt that is being written, with the function to call at its end.

    Args:
        attempt: the attempt whose `step` the pump calls.
        ended: called once, when the run was stopped or no longer belongs to its writer.
    """

    def __init__(self, attempt: Attempt, ended: Callable[[], object]) -> None:
        self.attempt = attempt
        self._ended: Callable[[], object] | None = ended

    def end(self) -> None:
        """Call `ended`, unless it was called before."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


class Pump:
    """Calls `step` of each attempt that is being written in this process, and notifies each whose run was stopped.

    Args:
        clock: returns the time in seconds. The attempts must have the same clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        #: The attempts, by the id of the run.
        self._attempts: dict[Any, _Served] = {}
        self._changed = threading.Condition()
        self._woken = False
        self._running = False
        self._asked_at = 0.0
        self._stop_requests = StopRequests()

    def add(self, attempt: Attempt, ended: Callable[[], object]) -> None:
        """Begin to call the attempt's `step` regularly.

        Args:
            attempt: the attempt, after its method `begin` was called.
            ended: called once, in the thread of the pump, when the run was stopped or no longer belongs to its writer.
        """
        with self._changed:
            self._attempts[attempt.run.pk] = _Served(attempt, ended)
            if not self._running:
                self._running = True
                submit_alone("runs", self._run)
            self._wake()

    def remove(self, attempt: Attempt) -> None:
        """Stop calling the attempt's `step`."""
        with self._changed:
            self._attempts.pop(attempt.run.pk, None)
            self._wake()

    def wake(self) -> None:
        """Make the thread check again which attempts are due. Call this if a broadcast became due earlier."""
        with self._changed:
            self._wake()

    def _wake(self) -> None:
        self._woken = True
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._attempts:
                    self._running = False
                    return
                due = min(served.attempt.due() for served in self._attempts.values())
                due = min(due, self._asked_at + STOP_INTERVAL)
                self._changed.wait_for(lambda: self._woken, max(0.0, due - self._clock()))
                self._woken = False
                attempts = dict(self._attempts)
            for served in attempts.values():
                if served.attempt.due() <= self._clock():
                    self._step(served)
            if self._asked_at + STOP_INTERVAL <= self._clock():
                self._asked_at = self._clock()
                self._find_stopped(attempts)

    def _step(self, served: _Served) -> None:
        try:
            with_kept_connections(served.attempt.step)
        except Exception:
            # The error must not end this thread, because the other attempts need it.
            logger.exception("The run %s could not be written.", served.attempt.run.pk)
            served.attempt.lost = True
        if served.attempt.lost:
            served.end()

    def _find_stopped(self, attempts: dict[Any, _Served]) -> None:
        try:
            stopped = with_kept_connections(self._stop_requests.find, list(attempts))
        except Exception as error:
            if not is_outage(error):
                logger.exception("The database could not be asked which runs were stopped.")
            return  # an outage is not logged here, because `step` logs it
        for pk in stopped:
            attempts[pk].attempt.stopped = True
            attempts[pk].end()


_pumps: dict[int, Pump] = {}


def pump() -> Pump:
    """Return the pump of this process. A forked child process gets its own pump, because a fork copies no threads."""
    pid = os.getpid()
    return _pumps.get(pid) or _pumps.setdefault(pid, Pump())
