"""The interface to a server's transport of one WebSocket connection, which is hidden behind ASGI's `send`."""

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

#: The ASGI extension with which a server offers more than `send`. Its value in the scope is a `Transport`.
FRAMES_EXTENSION = "reliable_cable.frames"


class Transport:
    """The transport of one connection. This base class uses nothing but ASGI; subclasses know their server.

    Args:
        send: the ASGI `send`.
    """

    #: Whether this package can drain the server before it shuts down.
    drainable = False
    #: How long, in seconds, the server is configured to wait for requests when it stops; 0 if it is not configured.
    grace = 0.0
    #: Writes the bytes of one WebSocket frame without waiting; None if the server does not support this. It must not be
    #: called while the transport's buffer is full, see `attach`.
    write: Callable[[bytes], None] | None = None
    #: Whether the client can restore its session on another connection.
    has_sessions = True
    #: The maximum number of streams that the client may have; None means no limit.
    max_streams: int | None = None
    #: The class of frames that this client can read.
    form: type[Frame] = Frame

    def __init__(self, send: Any) -> None:
        #: The server's own `send`, if it was found, and otherwise the one of the outermost middleware. The
        #: server's own `send` avoids the calls of all middlewares for each message.
        self.send = send
        self._closing: asyncio.Task[None] | None = None

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register two callbacks for the state of the transport's buffer.

        This does nothing for a server whose `send` waits while the buffer is full.

        Args:
            pause: called when the buffer is full, and when the connection is lost.
            resume: called when the buffer has room again.
        """

    def complete(self, command: Subscribe) -> Subscribe:
        """Return a command with the positions that the transport knows. This base class knows none."""
        return command

    @property
    def lost(self) -> bool:
        """Whether the server knows that the connection is lost."""
        return False

    def pause_reading(self) -> None:
        """Read no frames until `resume_reading` is called. Repeat this call every few seconds meanwhile.

        As long as the call is repeated, the server does not expect answers to its own pings. This base class does
        nothing, because most servers stop reading while `receive` is not awaited.
        """

    def resume_reading(self) -> None:
        """Read frames again."""

    def stop_reading(self) -> None:
        """Read nothing more, because the connection is being closed. This base class can do nothing."""

    def unsent(self) -> int | None:
        """Return how many written bytes the client has not acknowledged; None if that is unknown."""
        return None

    def abort(self) -> None:
        """Drop the connection at once and discard its buffer. This base class can only ask the server to close it."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        with contextlib.suppress(Exception):  # servers raise various errors after the client has disconnected
            await self.send({"type": "websocket.close", "code": CLOSE_NORMAL})


def unacknowledged_bytes(file: int) -> int | None:
    """Return how many bytes a socket has sent or buffered without an acknowledgement; None if the system cannot tell.

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
