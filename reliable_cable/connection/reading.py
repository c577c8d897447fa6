"""Decides when the next frame of a client is read, so that one client does not slow down the others.

See Protocol: Fast clients.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from reliable_cable.concurrency.token_bucket import TokenBucket
from reliable_cable.logs import logger
from reliable_cable.protocol.constants import DisconnectReason

from .connection import Connection

#: The maximum number of frames of one client that are read before other tasks of the event loop run.
FRAMES_PER_ITERATION: Final = 8
#: A long frame counts as several frames: one, and another one for each full block of this many characters.
FRAME_SIZE: Final = 8 * 1024
#: How long, in seconds, a client may send frames faster than `MAX_FRAME_RATE`. After that, it is disconnected.
FLOOD_TIME: Final = 10.0
#: The size of a burst, in seconds: a client may send as many frames at once as `MAX_FRAME_RATE` allows in this time,
#: and one more frame for each of `MAX_SUBSCRIPTIONS`.
BURST_TIME: Final = 2.0
#: The interval, in seconds, at which a connection checks whether its socket is lost, while reading is paused.
CHECK_INTERVAL: Final = 1.0


class Reading:
    """Limits how fast the frames of one connection are read.

    A token bucket limits the rate. Reading also stops while the command queue is full, and while the socket accepts
    nothing and the client's account is more than half full. The server's buffers then fill, and the client has to wait
    before it can send more.

    Args:
        connection: the connection whose frames are read.
    """

    __slots__ = ("_bucket", "_connection", "_frames", "_over_since")

    def __init__(self, connection: Connection) -> None:
        settings = connection.hub.settings
        rate = settings.max_frame_rate
        self._connection = connection
        self._bucket = TokenBucket(rate, rate * BURST_TIME + settings.max_subscriptions) if rate is not None else None
        #: The number of frames that were read since the last pause.
        self._frames = 0
        #: The time at which the client began to exceed `MAX_FRAME_RATE`, by the event loop's clock. None while it sends
        #: more slowly.
        self._over_since: float | None = None

    def count(self, message: Mapping[str, Any]) -> bool:
        """Count a frame that was read. Return whether to await `pause` before the next one.

        Args:
            message: the ASGI message that contains the frame.
        """
        text = message.get("text")
        self._frames += 1 if text is None else 1 + len(text) // FRAME_SIZE
        return self._frames >= FRAMES_PER_ITERATION or self._connection.commands.full

    async def pause(self) -> None:
        """Let other connections run, and wait until the next frame may be read."""
        connection = self._connection
        delay = self._delay(asyncio.get_running_loop().time())
        connection.pause_reading()
        await asyncio.sleep(delay)
        while not connection.transport.lost and (wait := self._next_wait()) is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_INTERVAL):
                    await wait()
            connection.pause_reading()
        connection.resume_reading()

    def _next_wait(self) -> Callable[[], Awaitable[None]] | None:
        """Return a function to await before the next frame is read, or None if the frame may be read now."""
        connection = self._connection
        if connection.commands.full:
            return connection.commands.has_room
        if connection.outbox.blocked and connection.account.used > connection.account.half:
            # The client does not read its frames, and too many bytes are queued for it.
            return connection.outbox.drained
        return None

    def _delay(self, now: float) -> float:
        """Return how long, in seconds, to stop reading. Disconnect a client that sends too fast for too long."""
        frames, self._frames = self._frames, 0
        delay = 0.0 if self._bucket is None else self._bucket.take(frames, now)
        if not delay:
            self._over_since = None
        elif self._over_since is None:
            self._over_since = now
        elif now - self._over_since > FLOOD_TIME and not self._connection.ending:
            logger.warning("A client is disconnected: its frames exceeded MAX_FRAME_RATE for %g s.", FLOOD_TIME)
            self._connection.close(DisconnectReason.RATE_LIMITED)
        return delay
