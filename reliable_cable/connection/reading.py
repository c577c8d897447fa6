"""Decides when the next frame of a client is read, so that one client does not slow down the others.

See Protocol: Fast clients.
"""

import asyncio
from typing import Final

from reliable_cable.protocol.constants import DisconnectReason

from .connection import Connection

#: The most frames of one client that are read before other connections get a turn in the event loop.
FRAMES_PER_ITERATION: Final = 8
#: A frame counts as one more frame for each so many characters.
FRAME_SIZE: Final = 8 * 1024
#: How long, in seconds, a client may send frames faster than `MAX_FRAME_RATE`. After that, it is disconnected.
FLOOD_TIME: Final = 10.0
#: How many seconds of `MAX_FRAME_RATE` a client may send at once. Each subscription that it may have adds one frame.
BURST_TIME: Final = 2.0
#: How often, in seconds, a connection that is not read checks whether its socket is lost.
CHECK_INTERVAL: Final = 1.0


class Reading:
    """Limits how fast the frames of one connection are read.

    A token bucket limits the rate. Nothing is read either while the queue of commands is full, or while the client
    makes the server keep too much for it. The server's buffers then fill, and the client has to wait.

    Args:
        connection: the connection.
    """

    __slots__ = ("_burst", "_connection", "_frames", "_over_since", "_rate", "_tokens", "_updated")

    def __init__(self, connection: Connection) -> None:
        settings = connection.hub.settings
        self._connection = connection
        self._rate = settings.max_frame_rate
        self._burst = (self._rate or 0) * BURST_TIME + settings.max_subscriptions
        self._tokens = self._burst
        #: When the tokens were counted last, by the clock of the event loop.
        self._updated = 0.0
        #: The frames that were read since then.
        self._frames = 0
        #: Since when the client has sent more than it may; None: it has not.
        self._over_since: float | None = None

    def receive(self, text: str | None) -> bool:
        """Pass a frame to the connection. Return whether to await `pause` before the next one.

        Args:
            text: the text of the frame; None: it is a binary frame.
        """
        self._connection.receive(text)
        self._frames += 1 if text is None else 1 + len(text) // FRAME_SIZE
        return self._frames >= FRAMES_PER_ITERATION or self._connection.commands.full

    async def pause(self) -> None:
        """Let other connections run, and wait until the next frame may be read."""
        connection = self._connection
        delay = self._delay(asyncio.get_running_loop().time())
        connection.pause_reading()
        await asyncio.sleep(delay)
        while connection.commands.full and not connection.transport.lost:
            await connection.commands.has_room(CHECK_INTERVAL)
            connection.pause_reading()
        if connection.account.used > connection.account.half:
            # What is kept are frames that the client does not read.
            await connection.outbox.drained()
        connection.resume_reading()

    def _delay(self, now: float) -> float:
        """Return how long, in seconds, to read nothing. Disconnect a client that has sent too much for too long."""
        frames, self._frames = self._frames, 0
        if self._rate is None:
            return 0
        self._tokens = min(self._tokens + (now - self._updated) * self._rate, self._burst) - frames
        self._updated = now
        if self._tokens >= 0:
            self._over_since = None
            return 0
        if self._over_since is None:
            self._over_since = now
        elif now - self._over_since > FLOOD_TIME and not self._connection.ending:
            self._connection.log.warning("A client sent more than %g frames a second for %g s.", self._rate, FLOOD_TIME)
            self._connection.close(DisconnectReason.INVALID_REQUEST)
        return -self._tokens / self._rate
