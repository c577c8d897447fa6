"""The present time by the clock of a store, which all hosts share.

Use it for times that one process writes and another one compares, because the clocks of hosts differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final, Protocol

from django.db import connections

from reliable_cable.exceptions import StoreError

logger = logging.getLogger("reliable_cable")

#: Seconds between two measurements while a clock is in use.
INTERVAL: Final = 10.0
#: Seconds until the next measurement after one that failed.
RETRY_DELAY: Final = 1.0
#: After how many seconds a measurement is too old to be exact.
MAX_AGE: Final = 30.0
#: How many seconds to subtract while there is no recent measurement. With a time that is too early, a client may get a
#: message twice. With a time that is too late, it may miss one.
MARGIN: Final = 5.0
#: The longest round trip, in seconds, of a measurement that always replaces the one before. A slower measurement
#: replaces it only if the two disagree.
GOOD_TRIP: Final = 0.25
#: How long, in seconds, `ready` waits for a measurement.
PATIENCE: Final = 2.0
#: After how many seconds without use the measuring thread ends.
IDLE_TIME: Final = 600.0


class Timed(Protocol):
    """The methods of a store that concern its clock."""

    @property
    def clock(self) -> Callable[[], float]:
        """This host's clock."""

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clocks of the store's servers, by name. There are none if the store uses this host's clock."""

    def time(self) -> float:
        """Return the present time by the store's clock."""

    async def atime(self) -> float:
        """Async twin of `time`."""


class StoreClock:
    """Tells the time by a store's clock without asking the store each time.

    It measures the offset between the store's clock and this process's monotonic clock. With a measurement of the last
    `MAX_AGE` seconds, the time is never ahead of the store's clock, and behind it by at most the round trip of the
    measurement. Without one, the time is estimated from the last measurement, or from this host's clock before the
    first one, and `MARGIN` is subtracted. Nothing is measured if the store uses this host's clock.

    On an event loop, `keep` measures. In other processes, as under WSGI or in a task, a thread is started at the first
    use, and ends after `IDLE_TIME` seconds without use.

    Args:
        store: the store whose clock it tells.
        threads: whether a thread may measure. False keeps tests in transactions from opening a second database
            connection.
        monotonic: this process's monotonic clock, in seconds.
        host: this host's clock, in seconds since 1970.
    """

    def __init__(
        self,
        store: Timed,
        *,
        threads: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        host: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._threads = threads
        self._monotonic = monotonic
        self._host = host
        #: The offset to add to the monotonic clock, and when it was measured; None before the first measurement.
        self._measured: tuple[float, float] | None = None
        self._used_at = 0.0
        self._keepers = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @cached_property
    def remote(self) -> bool:
        """Whether the store uses another clock than this host's."""
        return bool(self._store.clocks())

    # -- telling the time ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the present time, in seconds since 1970."""
        return self.at(self._monotonic()) if self.remote else self._store.clock()

    def moment(self) -> float:
        """Return the present time by the monotonic clock, to be passed to `at` later."""
        return self._monotonic()

    def at(self, moment: float) -> float:
        """Return the store's time at a past moment, according to the newest measurement.

        Args:
            moment: the value that `moment` returned then.
        """
        if not self.remote:
            return self._store.clock() - (self._monotonic() - moment)
        self._used_at = self._monotonic()
        if self._fresh:
            assert self._measured is not None  # noqa: S101 - for the type checker
            return moment + self._measured[0]
        self._measure_soon()
        offset = self._host() - self._monotonic() if self._measured is None else self._measured[0]
        return moment + offset - MARGIN

    def of_host(self, host_time: float) -> float:
        """Convert a time of this host's clock into the store's time."""
        return self.now() + (host_time - self._host()) if self.remote else host_time

    # -- measuring ----------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Ask the store for its time.

        Raises:
            StoreError: the store could not be reached.
        """
        asked = self._monotonic()
        self._take(asked, self._store.time())

    async def ameasure(self) -> None:
        """Async twin of `measure`."""
        asked = self._monotonic()
        self._take(asked, await self._store.atime())

    async def ready(self) -> None:
        """Measure now if there is no recent measurement. Give up after `PATIENCE` seconds."""
        if self.remote and not self._fresh:
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self.ameasure()

    async def keep(self) -> None:
        """Measure every `INTERVAL` seconds until cancelled."""
        if not self.remote:
            return
        self._keepers += 1
        try:
            while True:
                delay = INTERVAL
                try:
                    await self.ameasure()
                except Exception as error:
                    logger.debug("The time of the store could not be read; trying again: %s", error)
                    delay = RETRY_DELAY
                await asyncio.sleep(delay)
        finally:
            self._keepers -= 1

    @property
    def _fresh(self) -> bool:
        return self._measured is not None and self._monotonic() - self._measured[1] <= MAX_AGE

    @property
    def _in_use(self) -> bool:
        return self._monotonic() - self._used_at < IDLE_TIME

    def _take(self, asked: float, store_time: float) -> None:
        # The store read its clock at some moment between the question and the answer.
        answered = self._monotonic()
        earliest, latest = store_time - answered, store_time - asked
        offset = earliest
        if self._measured is not None and answered - asked > GOOD_TRIP and earliest <= self._measured[0] <= latest:
            offset = self._measured[0]
        self._measured = offset, asked

    def _measure_soon(self) -> None:
        with self._lock:
            if not self._threads or self._keepers or (self._thread is not None and self._thread.is_alive()):
                return
            thread = threading.Thread(
                target=_measure_while_used, args=[weakref.ref(self)], name="cable-clock", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
                thread.start()
                self._thread = thread


def _measure_while_used(reference: weakref.ref[StoreClock]) -> None:
    """Measure every `INTERVAL` seconds while the clock exists and is in use. A thread runs this."""
    while (clock := reference()) is not None and clock._in_use:
        delay = INTERVAL
        try:
            clock.measure()
        except Exception as error:
            logger.debug("The time of the store could not be read; trying again: %s", error)
            delay = RETRY_DELAY
        finally:
            # No database connection stays open between two measurements.
            connections.close_all()
        del clock
        time.sleep(delay)
