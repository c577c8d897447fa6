"""Pings all connections of a process: those that are due at about the same time by one timer and one frame."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable
from typing import Final, Protocol

from reliable_cable.protocol import messages
from reliable_cable.protocol.frames import Frame

logger = logging.getLogger("reliable_cable")

#: Seconds by which a ping may be late.
TICK: Final = 0.1


class Pinged(Protocol):
    """A connection that is pinged."""

    ping_interval: float
    #: The tick of its next ping; the heartbeat's.
    ping_due: int

    def ping(self, frame: str) -> bool:
        """Send a ping; False if the connection is to have no more."""


class Heartbeat:
    """Pings connections, each at its own interval. Used from one event loop.

    Args:
        clock: returns the time for pings, in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        #: Who is due at a tick: a connection costs an entry here, and no timer of its own.
        self._due: dict[int, set[Pinged]] = {}
        self._tick = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Pinged) -> None:
        """Ping a connection from now on: first after half its interval to one and a half, so that pings are spread."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._tick = int(loop.time() / TICK)
            self._wait(loop)
        first = connection.ping_interval * random.uniform(0.5, 1.5)  # noqa: S311 - spreads pings, no secret
        # Late by a part of a tick, never early.
        self._schedule(connection, math.ceil((loop.time() + first) / TICK))

    def remove(self, connection: Pinged) -> None:
        """Ping a connection no more; one that is not pinged is ignored."""
        due = self._due.get(connection.ping_due)
        if due is not None:
            due.discard(connection)
            if not due:
                del self._due[connection.ping_due]
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, connection: Pinged, tick: int) -> None:
        connection.ping_due = tick
        self._due.setdefault(connection.ping_due, set()).add(connection)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_at((self._tick + 1) * TICK, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        # A loop that was busy has missed ticks.
        now = max(int(loop.time() / TICK), self._tick + 1)
        frame = Frame(messages.ping(self._clock()))
        for tick in range(self._tick + 1, now + 1):
            for connection in self._due.pop(tick, ()):
                try:
                    if connection.ping(frame):
                        self._schedule(connection, now + max(round(connection.ping_interval / TICK), 1))
                except Exception:
                    logger.exception("A connection could not be pinged.")
        self._tick = now
        self._timer = None
        if self._due:
            self._wait(loop)
