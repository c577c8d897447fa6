"""uvicorn: `send` waits while the transport's buffer is full; aborting needs the transport.

`CableWebSocketProtocol` offers more, as an ASGI extension of the scope: it writes frames that were made once for all
subscribers, and tells when the transport's buffer is full. Choose it with

    uvicorn --ws reliable_cable.servers.uvicorn:CableWebSocketProtocol project.asgi:application

deflate.py has one that compresses those frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from reliable_cable.protocol.frames import Frame

from .base import FRAMES_EXTENSION, Transport, in_kernel

if TYPE_CHECKING:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol as Protocol
    from websockets.extensions import ServerExtensionFactory
else:
    try:
        from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol as Protocol
    except ImportError:  # uvicorn, or websockets, is not installed: nobody asks for the protocol
        Protocol = object


class UvicornTransport(Transport):
    """A WebSocket connection of uvicorn.

    Args:
        protocol: the asyncio protocol whose `send` the application was given.
    """

    drainable = True

    def __init__(self, protocol: Any) -> None:
        super().__init__(protocol.send)
        self._protocol = protocol
        self.grace = protocol.config.timeout_graceful_shutdown or 0.0

    @property
    def lost(self) -> bool:
        """Whether the client has disconnected, or uvicorn has refused it."""
        return bool(self._protocol.transport.is_closing())

    def abort(self) -> None:
        """Drop the connection at once."""
        self._protocol.transport.abort()

    def unsent(self) -> int | None:
        """Return how many bytes the transport and the kernel have."""
        transport = self._protocol.transport
        socket = transport.get_extra_info("socket")
        kept = None if socket is None or transport.is_closing() else in_kernel(socket.fileno())
        return None if kept is None else transport.get_write_buffer_size() + kept


class FramesTransport(UvicornTransport):
    """A WebSocket connection of `CableWebSocketProtocol`."""

    def __init__(self, protocol: CableWebSocketProtocol) -> None:
        super().__init__(protocol)
        self.write = protocol.transport.write
        self.form = protocol.form

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call `pause` when the transport's buffer fills, and `resume` when it has drained."""
        self._protocol.attach(pause, resume)


class CableWebSocketProtocol(Protocol):
    """uvicorn's WebSocket protocol, whose scope has the extension `reliable_cable.frames`: a `FramesTransport`.

    It agrees to no extension: a frame that is made once for all cannot be compressed for each.
    """

    #: What is agreed to if the client offers it.
    extensions: ClassVar[Sequence[ServerExtensionFactory]] = ()
    _pause: Callable[[], None] | None = None
    _resume: Callable[[], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.available_extensions = self.extensions

    def handle_connect(self, event: Any) -> None:
        """Offer the extension."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["extensions"][FRAMES_EXTENSION] = FramesTransport(self)  # type: ignore[assignment]

    @property
    def form(self) -> type[Frame]:
        """In which the client takes frames, once the handshake was read."""
        return Frame

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Call `pause` when the transport's buffer fills, and `resume` when it has drained."""
        self._pause, self._resume = pause, resume
        if not self.writable.is_set():
            pause()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        super().pause_writing()
        if self._pause is not None:
            self._pause()

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        super().resume_writing()
        if self._resume is not None:
            self._resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has gone: nothing is to be written any more."""
        if self._pause is not None:
            self._pause()
        self._pause = self._resume = None
        super().connection_lost(exc)
        # What refers to itself is freed by a full garbage collection only: the extension, and the parser.
        if hasattr(self, "scope"):
            self.scope["extensions"].pop(FRAMES_EXTENSION, None)
        self.conn.parser.close()


def transport_for(send: Any) -> UvicornTransport | None:
    """Return the connection behind a `send` of uvicorn's, or None."""
    protocol = getattr(send, "__self__", None)
    ours = any(cls.__module__.startswith("uvicorn.protocols.websockets.") for cls in type(protocol).__mro__)
    return UvicornTransport(protocol) if ours and hasattr(protocol, "transport") else None
