"""`StoreClock`, which returns the time by the clock of a store. All hosts that use the store share its clock.

Use a `StoreClock` for times that one process stores and another process compares, because the clocks of hosts differ.
"""

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Final

from django.db import connections

from reliable_cable.concurrency.retrying import BACKGROUND_RETRY_DELAY
from reliable_cable.exceptions import StoreError
from reliable_cable.logs import logger

from .base import Store

#: The time, in seconds, between two measurements while the clock is in use.
INTERVAL: Final = 10.0
#: The age, in seconds, up to which a measurement is used without subtracting `MARGIN`.
MAX_AGE: Final = 30.0
#: The number of seconds to subtract from an estimated time if there is no recent measurement. An estimate that is too
#: late may make a client miss a message. An estimate that is too early only makes the client receive a message twice.
MARGIN: Final = 5.0
#: How many seconds two clocks may drift apart in one second. NTP changes the speed of a clock by at most this much.
MAX_DRIFT: Final = 0.0005
#: How long, in seconds, `ready` waits for a measurement.
READY_TIMEOUT: Final = 2.0
#: How long, in seconds, the measuring thread continues to run while the clock is not used.
IDLE_TIME: Final = 600.0


class StoreClock:
    """Returns the time by a store's clock, without a request to the store for each call.

    It measures the difference between the store's clock and this process's monotonic clock. If the measurement is at
    most `MAX_AGE` seconds old, the returned time is never later than the store's time. It may be earlier, by at most
    the round-trip time of the measurement, or by less if an earlier measurement had a shorter round trip.

    If the measurement is older, the time is estimated from it, and `MARGIN` is subtracted. Before the first
    measurement, the time is estimated from this host's clock. If the store itself uses this host's clock, nothing is
    measured.

    In a process with an event loop, a task runs `keep`. In other processes, such as WSGI servers and task workers, the
    first use starts a thread that measures. The thread ends if the clock is not used for `IDLE_TIME` seconds.

    Args:
        store: the store whose clock is used.
        threads: whether a thread may measure. It is False in tests that run in a transaction, because a thread would
            open a second database connection.
        monotonic: this process's monotonic clock, in seconds.
        host: this host's clock, in seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        *,
        threads: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        host: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._threads = threads
        self._monotonic = monotonic
        self._host = host
        #: The seconds to add to the monotonic clock, and the monotonic time of the measurement; None before the first
        #: measurement.
        self._measured: tuple[float, float] | None = None
        self._used_at = 0.0
        #: The number of event loops on which `keep` is running.
        self._keep_count = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @cached_property
    def remote(self) -> bool:
        """Whether the store uses a clock other than this host's clock."""
        return bool(self._store.clocks())

    # -- telling the time ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the current time, in seconds since 1970."""
        return self.at(self._monotonic()) if self.remote else self._store.clock()

    def moment(self) -> float:
        """Return the current time of the monotonic clock, for a later call to `at`."""
        return self._monotonic()

    def at(self, moment: float) -> float:
        """Return the store's time at a past moment, according to the newest measurement.

        Args:
            moment: the result of `moment()` at that moment.
        """
        if not self.remote:
            return self._store.clock() - (self._monotonic() - moment)
        self._used_at = now = self._monotonic()
        measured = self._measured
        if measured is not None and now - measured[1] <= MAX_AGE:
            return moment + measured[0]
        self._measure_soon()
        offset = self._host() - now if measured is None else measured[0]
        return moment + offset - MARGIN

    def of_host(self, host_time: float) -> float:
        """Convert a time of this host's clock to the time of the store's clock."""
        return self.now() + (host_time - self._host()) if self.remote else host_time

    # -- measuring ----------------------------------------------------------------------------------------------------

    def measure(self) -> None:
        """Measure the difference between the store's clock and the monotonic clock.

        Raises:
            StoreError: the store could not be reached.
        """
        sent_at = self._monotonic()
        self._record(sent_at, self._store.time())

    async def ameasure(self) -> None:
        """Async version of `measure`."""
        sent_at = self._monotonic()
        self._record(sent_at, await self._store.atime())

    async def ready(self) -> None:
        """Measure the store's clock if there is no recent measurement. Give up after `READY_TIMEOUT` seconds."""
        if self.remote and not self._is_fresh(self._monotonic()):
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(READY_TIMEOUT):
                    await self.ameasure()

    async def keep(self) -> None:
        """Measure the store's clock every `INTERVAL` seconds until cancelled. Do nothing if it is this host's clock."""
        if not self.remote:
            return
        self._keep_count += 1
        try:
            while True:
                delay = INTERVAL
                try:
                    await self.ameasure()
                except Exception as error:
                    logger.debug("The time of the store could not be read; trying again: %s", error)
                    delay = BACKGROUND_RETRY_DELAY
                await asyncio.sleep(delay)
        finally:
            self._keep_count -= 1

    def _is_fresh(self, now: float) -> bool:
        return self._measured is not None and now - self._measured[1] <= MAX_AGE

    def _record(self, sent_at: float, store_time: float) -> None:
        # The store read its clock at some moment between the request and the response.
        received_at = self._monotonic()
        offset, latest = store_time - received_at, store_time - sent_at
        if self._measured is not None:
            # Either offset may be too low. So the higher one is more exact, unless the store's clock was set back.
            last, measured_at = self._measured
            last -= MAX_DRIFT * (sent_at - measured_at)
            if last <= latest:
                offset = max(offset, last)
        self._measured = offset, sent_at

    def _measure_soon(self) -> None:
        with self._lock:
            if not self._threads or self._keep_count or (self._thread is not None and self._thread.is_alive()):
                return
            thread = threading.Thread(
                target=_measure_while_used, args=[weakref.ref(self)], name="cable-clock", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # no thread can start while the interpreter is shutting down
                thread.start()
                self._thread = thread


def _measure_while_used(reference: weakref.ref[StoreClock]) -> None:
    """Measure every `INTERVAL` seconds while the clock exists and is in use. This runs in a thread."""
    while (clock := reference()) is not None and clock._monotonic() - clock._used_at < IDLE_TIME:
        delay = INTERVAL
        try:
            clock.measure()
        except Exception as error:
            logger.debug("The time of the store could not be read; trying again: %s", error)
            delay = BACKGROUND_RETRY_DELAY
        finally:
            # The thread must not have an open database connection between two measurements.
            connections.close_all()
        del clock
        time.sleep(delay)
