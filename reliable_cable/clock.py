"""The time by the clock of a store, on which all hosts that share the store agree.

Times that one process writes and another one compares are taken from here: hosts' clocks differ.
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

from .exceptions import StoreError

logger = logging.getLogger("reliable_cable")

#: Seconds between two measurements while a clock is in use, and until the next one after a measurement that failed.
INTERVAL: Final = 10.0
RETRY_DELAY: Final = 1.0
#: The greatest age, in seconds, of a measurement that is relied on.
MAX_AGE: Final = 30.0
#: Seconds that are subtracted where there is no such measurement. A time that is too early makes a message come twice;
#: a time that is too late loses one.
MARGIN: Final = 5.0
#: Seconds that a measurement may take to be better than an earlier one that agrees with it.
GOOD_TRIP: Final = 0.25
#: How long, in seconds, `ready` waits for a measurement.
PATIENCE: Final = 2.0
#: Seconds without use after which the thread that measures ends.
IDLE_TIME: Final = 600.0


class Timed(Protocol):
    """A store, as far as its clock is concerned."""

    @property
    def clock(self) -> Callable[[], float]:
        """This host's clock."""

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clocks of the servers that give the store its times; none: this host's clock does."""

    def time(self) -> float:
        """Return the present time by the store's clock."""

    async def atime(self) -> float:
        """Async twin of `time`."""


class StoreClock:
    """Tells the time by a store's clock, at once: it keeps the offset of that clock from this process's monotonic one.

    The time is never later than the store's own. It is earlier by at most the round trip of the measurement, or by
    about `MARGIN` while there is no measurement of the last `MAX_AGE` seconds: then it rests on the one before, or on
    this host's clock. Where the store uses this host's clock there is nothing to measure.

    An event loop measures with `keep`. In a process without one (a page rendered under WSGI, a task), a thread measures
    from the first use on, and ends when the clock is not used any more.

    Args:
        store: whose clock it is.
        threads: False: no thread measures, so that tests in transactions have no second database connection.
        monotonic: this process's clock that does not step, in seconds.
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
        #: What is to be added to the monotonic clock, and when that was measured; None: not yet.
        self._measured: tuple[float, float] | None = None
        self._used_at = 0.0
        self._keepers = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @cached_property
    def remote(self) -> bool:
        """Whether it is another clock than this host's."""
        return bool(self._store.clocks())

    # -- telling the time ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the present time, in seconds since 1970."""
        return self.at(self._monotonic()) if self.remote else self._store.clock()

    def moment(self) -> float:
        """Return what `at` takes: the present time by the monotonic clock."""
        return self._monotonic()

    def at(self, moment: float) -> float:
        """Return the time at a moment in the past, as far as is known now.

        Args:
            moment: what `moment` returned.
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
        """Return the time at which this host's clock said `host_time`."""
        return self.now() + (host_time - self._host()) if self.remote else host_time

    # -- measuring ----------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Ask the store for its time.

        Raises:
            StoreError: the store could not be asked.
        """
        asked = self._monotonic()
        self._take(asked, self._store.time())

    async def ameasure(self) -> None:
        """Async twin of `measure`."""
        asked = self._monotonic()
        self._take(asked, await self._store.atime())

    async def ready(self) -> None:
        """Measure now if there is no recent measurement, for `PATIENCE` seconds at most."""
        if self.remote and not self._fresh:
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self.ameasure()

    async def keep(self) -> None:
        """Measure again and again, until cancelled."""
        if not self.remote:
            return
        self._keepers += 1
        try:
            while True:
                delay = INTERVAL
                try:
                    await self.ameasure()
                except Exception as error:
                    logger.debug("The store could not be asked for its time; trying again: %s", error)
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
    """Measure in a thread, for as long as the clock exists and is used."""
    while (clock := reference()) is not None and clock._in_use:
        delay = INTERVAL
        try:
            clock.measure()
        except Exception as error:
            logger.debug("The store could not be asked for its time; trying again: %s", error)
            delay = RETRY_DELAY
        finally:
            # No database connection stays open between two measurements.
            connections.close_all()
        del clock
        time.sleep(delay)
