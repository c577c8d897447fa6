"""uvicorn's transport of a WebSocket connection, and a WebSocket protocol that can write shared frames.

uvicorn's own `send` waits while the transport's buffer is full, so that nothing more is needed than a way to abort the
connection.

`CableWebSocketProtocol` also writes frames that are encoded once for all subscribers, and tells when the transport's
buffer is full. It offers both as an extension in the ASGI scope. Select it with

    uvicorn --ws reliable_cable.servers.uvicorn:CableWebSocketProtocol project.asgi:application

deflate.py has a variant that compresses these frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from reliable_cable.protocol.frames import Frame

from .base import FRAMES_EXTENSION, Transport, unacknowledged_bytes

try:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol as Protocol
except ImportError:  # uvicorn or websockets is not installed, so the protocol below is not used
    Protocol = object  # type: ignore[assignment,misc]


class UvicornTransport(Transport):
    """The transport of one WebSocket connection of uvicorn.

    Args:
        protocol: the asyncio protocol that created the application's `send`.
    """

    drainable = True

    def __init__(self, protocol: Any) -> None:
        super().__init__(protocol.send)
        self._protocol = protocol
        self.grace = protocol.config.timeout_graceful_shutdown or 0.0

    @property
    def lost(self) -> bool:
        """Whether the client has disconnected, or uvicorn has refused the connection."""
        return bool(self._protocol.transport.is_closing())

    def abort(self) -> None:
        """Drop the connection at once and discard its buffer."""
        self._protocol.transport.abort()

    def unsent(self) -> int | None:
        """Return how many bytes are in the buffers of the transport and the kernel; None if that is unknown."""
        transport = self._protocol.transport
        socket = transport.get_extra_info("socket")
        pending = None if socket is None or transport.is_closing() else unacknowledged_bytes(socket.fileno())
        return None if pending is None else transport.get_write_buffer_size() + pending


class FramesTransport(UvicornTransport):
    """The transport of one connection of `CableWebSocketProtocol`, which can write shared frames."""

    def __init__(self, protocol: CableWebSocketProtocol) -> None:
        super().__init__(protocol)
        self.write = protocol.transport.write
        self.form = protocol.form

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register two callbacks for the state of the transport's buffer, see `Transport.attach`."""
        self._protocol.attach(pause, resume)


class CableWebSocketProtocol(Protocol):
    """uvicorn's WebSocket protocol with a `FramesTransport` in the scope, as the extension `reliable_cable.frames`.

    It refuses compression, because uvicorn would compress each message again for each connection.
    """

    #: The WebSocket extensions that the server accepts if a client offers them.
    extensions: ClassVar[Sequence[Any]] = ()
    _pause: Callable[[], None] | None = None
    _resume: Callable[[], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.available_extensions = self.extensions

    def handle_connect(self, event: Any) -> None:
        """Add the transport to the scope of a new connection."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            self.scope["extensions"][FRAMES_EXTENSION] = FramesTransport(self)  # type: ignore[assignment]

    @property
    def form(self) -> type[Frame]:
        """The class of frames that the client can read. It is known after the handshake."""
        return Frame

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register two callbacks for the state of the transport's buffer, see `Transport.attach`."""
        self._pause, self._resume = pause, resume
        if not self.writable.is_set():
            pause()

    def pause_writing(self) -> None:
        """Tell the application that the transport's buffer is full."""
        super().pause_writing()
        if self._pause is not None:
            self._pause()

    def resume_writing(self) -> None:
        """Tell the application that the transport's buffer has room again."""
        super().resume_writing()
        if self._resume is not None:
            self._resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application that nothing more can be written, and break reference cycles."""
        if self._pause is not None:
            self._pause()
        self._pause = self._resume = None
        super().connection_lost(exc)
        # The transport in the scope and the parser are parts of reference cycles. Without this, only a garbage
        # collection would free them.
        if hasattr(self, "scope"):
            self.scope["extensions"].pop(FRAMES_EXTENSION, None)
        self.conn.parser.close()


def transport_for(send: Any) -> UvicornTransport | None:
    """Return the transport to which a `send` of uvicorn writes; None if the `send` is not uvicorn's."""
    protocol = getattr(send, "__self__", None)
    is_uvicorn = any(cls.__module__.startswith("uvicorn.protocols.websockets.") for cls in type(protocol).__mro__)
    return UvicornTransport(protocol) if is_uvicorn and hasattr(protocol, "transport") else None
