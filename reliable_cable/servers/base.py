"""The base class of transports, through which a connection uses features of its server that ASGI lacks."""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from reliable_cable.protocol.commands import Subscribe
from reliable_cable.protocol.constants import CLOSE_NORMAL

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = termios = None  # type: ignore[assignment]

from reliable_cable.protocol.frames import Frame

#: The ASGI extension by which a server offers its transport. Its value in the scope is a `Transport`.
FRAMES_EXTENSION = "reliable_cable.frames"


class Transport:
    """The transport of a connection. This base class uses nothing but ASGI. Subclasses use features of their server.

    Args:
        send: the ASGI `send` of the connection.
    """

    #: Whether this package can close the server's connections one after another before the server stops (see drain.py).
    drainable = False
    #: How long, in seconds, the server waits for open requests when it stops; 0 if no time is configured.
    grace = 0.0
    #: A function that writes the bytes of a WebSocket frame without waiting; None if the server does not support this.
    #: It must not be called while the transport's buffer is full, see `attach`.
    write: Callable[[bytes], None] | None = None
    #: Whether the client can restore its session on another connection.
    has_sessions = True
    #: The maximum number of streams that the client may receive; None if there is no limit.
    max_streams: int | None = None
    #: The class of frames that this client can read.
    form: type[Frame] = Frame

    def __init__(self, send: Any) -> None:
        #: The ASGI `send` to use. If the server's own `send` was found, it is used, because it avoids a call to every
        #: middleware for each message. If it was not found, the `send` of the connection is used.
        self.send = send
        self._closing: asyncio.Task[None] | None = None

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register two callbacks for the state of the transport's buffer.

        This does nothing for a server whose `send` waits while the buffer is full.

        Args:
            pause: a function that is called when the buffer is full, and when the connection is lost.
            resume: a function that is called when the buffer has room again.
        """

    def complete(self, command: Subscribe) -> Subscribe:
        """Add to a command the stream positions that the transport knows. This base class knows none."""
        return command

    @property
    def lost(self) -> bool:
        """Whether the server has noticed that the connection is lost. This base class always returns False."""
        return False

    def pause_reading(self) -> None:
        """Stop reading frames until `resume_reading` is called.

        While reading is paused, call this method again every few seconds. The answer of the client to the server's ping
        cannot be read now, so each call extends the time limit for the answer. This base class does nothing, because
        most servers stop reading while `receive` is not awaited.
        """

    def resume_reading(self) -> None:
        """Continue to read frames."""

    def stop_reading(self) -> None:
        """Stop reading, because the connection is being closed. This base class does nothing."""

    def unsent(self) -> int | None:
        """Return how many written bytes the client has not acknowledged; None if the number is unknown."""
        return None

    def abort(self) -> None:
        """Drop the connection immediately, and discard its buffer. This base class can only send a close message."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        with contextlib.suppress(Exception):  # servers raise various errors after the client has disconnected
            await self.send({"type": "websocket.close", "code": CLOSE_NORMAL})


def unacknowledged_bytes(file: int) -> int | None:
    """Return how many bytes of a socket's output the client has not acknowledged; None if the number is unknown.

    Args:
        file: the socket's file descriptor.
    """
    if termios is None:
        return None
    try:
        answer = fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4))
    except OSError:
        return None
    return int.from_bytes(answer, sys.byteorder)
