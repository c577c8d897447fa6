"""Ends connections when their tokens expire."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from reliable_cable.concurrency.tasks import BackgroundTasks
from reliable_cable.logs import logger
from reliable_cable.protocol.constants import DisconnectReason

#: The longest time, in seconds, for which a timer is set. Timers use the clock of the event loop, which does not notice
#: that the host's clock was set forward or that the host was suspended.
MAX_DELAY: Final = 60.0


class Expiring(Protocol):
    """A connection that a token may have authenticated."""

    @property
    def expires_at(self) -> float | None:
        """When the token expires, in seconds since 1970. None means never."""

    def drain(self, delay: float, reason: DisconnectReason) -> Coroutine[Any, Any, None]:
        """Close the connection after its queued commands. A client would lose a channel whose subscribe is pending."""


class TokenExpiry:
    """The timers that end the connections of one event loop when their tokens expire.

    Args:
        tasks: the background tasks of the event loop.
        clock: returns the time in seconds since 1970.
    """

    def __init__(self, tasks: BackgroundTasks, clock: Callable[[], float] = time.time) -> None:
        self._spawn = tasks.spawn
        self._clock = clock
        self._timers: dict[Expiring, asyncio.TimerHandle] = {}

    def add(self, connection: Expiring) -> None:
        """End a connection when its token expires. Do nothing if it has no token that expires."""
        if connection.expires_at is None:
            return
        delay = min(max(connection.expires_at - self._clock(), 0.0), MAX_DELAY)
        self._timers[connection] = asyncio.get_running_loop().call_later(delay, self._check, connection)

    def remove(self, connection: Expiring) -> None:
        """Forget a connection that has ended."""
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _check(self, connection: Expiring) -> None:
        del self._timers[connection]
        if connection.expires_at is not None and connection.expires_at > self._clock():
            self.add(connection)  # the timer was too short, or the clock was set back
            return
        logger.debug("A connection ends, because its token has expired.")
        self._spawn(connection.drain(0, DisconnectReason.TOKEN_EXPIRED))
