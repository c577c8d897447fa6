"""Closes connections when their tokens expire."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from reliable_cable.concurrency.tasks import BackgroundTasks
from reliable_cable.logs import logger
from reliable_cable.protocol.constants import DisconnectReason

#: The maximum delay of a timer, in seconds. When a timer ends, the host's clock is read again, because timers ignore
#: changes to this clock, and stop while the host is suspended.
MAX_DELAY: Final = 60.0


class Expiring(Protocol):
    """The part of a connection that `TokenExpiry` uses."""

    @property
    def expires_at(self) -> float | None:
        """The time when the token expires, in seconds since 1970; None if it never expires."""

    def drain(self, delay: float, reason: DisconnectReason) -> Coroutine[Any, Any, None]:
        """Wait for `delay` seconds and for the pending commands, then close the connection for a reason.

        The pending commands may include a subscribe command, which the client must not lose.
        """


class TokenExpiry:
    """Closes the connections of an event loop when their tokens expire. Each of these connections has a timer.

    Args:
        tasks: the background tasks of the event loop.
        clock: a function that returns the time, in seconds since 1970.
    """

    def __init__(self, tasks: BackgroundTasks, clock: Callable[[], float] = time.time) -> None:
        self._spawn = tasks.spawn
        self._clock = clock
        self._timers: dict[Expiring, asyncio.TimerHandle] = {}

    def add(self, connection: Expiring) -> None:
        """Set the timer of a connection. Nothing happens if the connection has no token that expires."""
        if connection.expires_at is None:
            return
        delay = min(max(connection.expires_at - self._clock(), 0.0), MAX_DELAY)
        self._timers[connection] = asyncio.get_running_loop().call_later(delay, self._check, connection)

    def remove(self, connection: Expiring) -> None:
        """Cancel the timer of a connection that has ended."""
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _check(self, connection: Expiring) -> None:
        del self._timers[connection]
        if connection.expires_at is not None and connection.expires_at > self._clock():
            self.add(connection)  # the delay was limited by `MAX_DELAY`, or the clock was set back
            return
        logger.debug("A connection ends, because its token has expired.")
        self._spawn(connection.drain(0, DisconnectReason.TOKEN_EXPIRED))
