"""Pings all connections of an event loop.

The heartbeat divides time into ticks of equal length. Connections that are due at the same tick share a timer and a
frame.
"""

import asyncio
import math
import random
import time
from collections.abc import Callable
from typing import Final, Protocol

from reliable_cable.logs import logger
from reliable_cable.protocol import messages
from reliable_cable.protocol.frames import Frame

#: The length of a tick, in seconds. A ping may be late by up to this time.
TICK: Final = 0.1


class Pinged(Protocol):
    """The part of a connection that the heartbeat uses."""

    #: The time between two pings of the connection, in seconds.
    ping_interval: float
    #: The number of the tick at which the next ping is sent. Only the heartbeat uses this attribute.
    ping_due: int

    def ping(self, frame: str) -> bool:
        """Send an encoded ping. Return False if the connection needs no more pings."""


class Heartbeat:
    """Pings the connections of an event loop, each at its own interval.

    Args:
        clock: a function that returns the time that pings contain, in seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        #: The connections to ping, by the number of the tick at which their next ping is due.
        self._due: dict[int, set[Pinged]] = {}
        self._tick = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Pinged) -> None:
        """Start to ping a connection. To spread pings, the first ping is sent after a random 0.5 to 1.5 intervals."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._tick = int(loop.time() / TICK)
            self._wait(loop)
        first = connection.ping_interval * random.uniform(0.5, 1.5)  # noqa: S311 - spreads pings, no secret
        # The ping may be late by up to a tick, but is never early.
        self._schedule(connection, math.ceil((loop.time() + first) / TICK))

    def remove(self, connection: Pinged) -> None:
        """Stop pinging a connection. Nothing happens if the connection was not added."""
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
        # If the event loop was busy, several ticks may have passed.
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
