"""What a session wants to know of, and do to, the transport behind ASGI's `send`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Any

from reliable_cable.protocol.constants import CLOSE_NORMAL

try:
    import fcntl
    import termios
except ImportError:  # Windows
    fcntl = termios = None  # type: ignore[assignment]
from reliable_cable.protocol.frames import Frame

#: The extension of an ASGI scope by which a server offers more than `send`: its value is a `Transport`.
FRAMES_EXTENSION = "reliable_cable.frames"


class Transport:
    """A connection of a server that is not known: the session has only ASGI.

    Args:
        send: the ASGI `send`.
    """

    #: Whether the server is one whose shutdown can be drained.
    drainable = False
    #: How long, in seconds, the server is configured to wait for requests when it stops; 0 if it is not configured.
    grace = 0.0
    #: Writes one WebSocket frame, ready as it goes over the wire, without waiting; None where that is not possible.
    #: While the transport's buffer is full (`attach`), it is not to be called.
    write: Callable[[bytes], None] | None = None
    #: In which the client takes the frames that `write` is given.
    form: type[Frame] = Frame

    def __init__(self, send: Any) -> None:
        #: The server's own `send`, where it was found behind those of middlewares: these have no part in what goes out
        #: once a connection was accepted.
        self.send = send
        self._closing: asyncio.Task[None] | None = None

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call `pause` when the transport's buffer fills, and `resume` when it has drained.

        A server whose `send` waits while its buffer is full needs none of this.
        """

    @property
    def lost(self) -> bool:
        """Whether the connection is known to be lost."""
        return False

    def unsent(self) -> int | None:
        """Return how many bytes were written and not taken by the client yet; None if that is not known."""
        return None

    def abort(self) -> None:
        """Drop the connection at once, with whatever its buffer holds; here, only ask for its end."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        with contextlib.suppress(Exception):  # whatever a server raises when the socket has gone
            await self.send({"type": "websocket.close", "code": CLOSE_NORMAL})


def in_kernel(file: int) -> int | None:
    """Return how many bytes a socket has that the other side has not confirmed; None where the system does not say."""
    if termios is None:
        return None
    try:
        answer = fcntl.ioctl(file, termios.TIOCOUTQ, bytes(4))
    except OSError:
        return None
    return int.from_bytes(answer, sys.byteorder)
