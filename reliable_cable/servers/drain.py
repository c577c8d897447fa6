"""Draining before shutdown: connections end one after another, with everything answered, before the server stops.

Both daphne and uvicorn close every socket as soon as they hear of SIGTERM. So their handler is kept waiting: ours runs
first, ends the connections over `DRAIN_TIME`, closes the hub, and then calls theirs.

A thread that waits for a database cannot be interrupted, the servers wait for their applications, and Python waits for
its threads when it exits. So a process that has not stopped `STOP_LIMIT` seconds after the signal is ended by a timer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reliable_cable.hub.hub import Hub

logger = logging.getLogger("reliable_cable")

#: Seconds over which clients are sent away, so that not all return at once.
DRAIN_TIME = 1.5
#: Seconds after which the server stops whatever is left.
DRAIN_LIMIT = 5.0
#: Seconds after which it stops although the stores are not closed: one may not answer.
CLOSE_LIMIT = 3.0
#: How long, in seconds, the process may take to stop, unless the server is configured to wait longer.
STOP_LIMIT = 11.0

SIGNALS = (signal.SIGTERM,)


class Drain:
    """Chains the server's signal handlers: drain first, then what they did.

    Args:
        hub: whose connections are to be ended.
        loop: the hub's.
        grace: how long, in seconds, the server is configured to wait for requests after the drain.
    """

    def __init__(self, hub: Callable[[], Hub], loop: asyncio.AbstractEventLoop, *, grace: float = 0.0) -> None:
        self._hub = hub
        self._loop = loop
        self._limit = max(STOP_LIMIT, DRAIN_LIMIT + CLOSE_LIMIT + grace)
        self._previous: dict[int, Any] = {}
        self._task: asyncio.Task[None] | None = None

    def install(self) -> bool:
        """Chain the handlers that are there now; False where that is impossible (not in the main thread)."""
        if threading.current_thread() is not threading.main_thread():
            return False
        for number in SIGNALS:
            previous = signal.getsignal(number)
            if not callable(previous):
                return False  # the server handles it in a way that cannot be chained, or not at all
            self._previous[number] = previous
            signal.signal(number, self._handle)
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._task is not None or self._loop.is_closed():
            self._pass_on(number)  # a second signal does not wait
        else:
            self._loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._drain(number))
            timer = threading.Timer(self._limit, end_process, (self._limit,))
            timer.daemon = True
            timer.start()

    async def _drain(self, number: int) -> None:
        try:
            hub = self._hub()
            try:
                async with asyncio.timeout(DRAIN_LIMIT):
                    await drain(hub)
            except TimeoutError:
                logger.warning("Not all connections could be drained in %s seconds.", DRAIN_LIMIT)
            async with asyncio.timeout(CLOSE_LIMIT):
                await hub.aclose()
        except TimeoutError:
            logger.warning("The stores could not be closed in %s seconds.", CLOSE_LIMIT)
        except Exception:
            logger.exception("Draining failed.")
        finally:
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        signal.signal(number, self._previous[number])
        self._previous[number](number, None)


async def drain(hub: Hub) -> None:
    """Send every client away, spread over `DRAIN_TIME`; new ones are refused from now on."""
    hub.draining = True
    sessions = list(hub.connections.values())
    logger.info("Draining %d connections.", len(sessions))
    delays = [random.uniform(0, DRAIN_TIME) for _ in sessions]  # noqa: S311 - spreads load, no secret
    await asyncio.gather(*(session.drain(delay) for session, delay in zip(sessions, delays, strict=True)))
    await hub.idle()


def end_process(limit: float) -> None:
    """End the process although something in it is still running.

    Args:
        limit: how long, in seconds, the process had to stop; for the log.
    """
    threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
    logger.error(
        "The process has not stopped in %g seconds, and is ended. These threads are still running: %s.",
        limit,
        ", ".join(threads),
    )
    os._exit(0)
