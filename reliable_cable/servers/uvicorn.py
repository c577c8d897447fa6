"""A WebSocket protocol for uvicorn that can write shared frames.

It can write frames that are encoded once for all subscribers, and tells the application when the transport's buffer is
full. The application uses these features through an extension in the ASGI scope. Select the protocol with

    uvicorn --ws reliable_cable.servers.uvicorn:CableWebSocketProtocol project.asgi:application

deflate.py has a subclass that compresses these frames. Both modules need the extra `uvicorn` of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

try:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
    from websockets.exceptions import SecurityError
    from websockets.extensions import ServerExtensionFactory
except ImportError as error:
    raise ImportError(
        f"reliable_cable.servers.uvicorn needs the Python package {error.name}: pip install 'reliable_cable[uvicorn]'.",
        name=error.name,
    ) from error

from reliable_cable.protocol.frames import Frame

from .base import FRAMES_EXTENSION
from .uvicorn_transport import UvicornTransport


class FramesTransport(UvicornTransport):
    """The transport of a connection that uses `CableWebSocketProtocol`. It can write shared frames."""

    def __init__(self, protocol: CableWebSocketProtocol) -> None:
        super().__init__(protocol)
        self.write = protocol.transport.write
        self.form = protocol.form

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register two callbacks for the state of the transport's buffer, see `Transport.attach`."""
        self._protocol.attach(pause, resume)


class CableWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with a `FramesTransport` in the scope, as the extension `reliable_cable.frames`.

    It refuses compression, because uvicorn would compress a message separately for each connection. If a handshake is
    too large, the response has the status 431. uvicorn's own protocol does not respond, and keeps the connection open.
    """

    #: The WebSocket extensions that the server accepts if a client offers them.
    extensions: ClassVar[Sequence[ServerExtensionFactory]] = ()
    _pause: Callable[[], None] | None = None
    _resume: Callable[[], None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.available_extensions = self.extensions

    def data_received(self, data: bytes) -> None:
        """Process received data, and refuse the handshake if the parser does not accept it."""
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self._refuse_handshake(self.conn.handshake_exc)

    def _refuse_handshake(self, error: Exception) -> None:
        # Before version 17 of websockets, an error about the size is only the cause of this error.
        too_large = isinstance(error, SecurityError) or isinstance(error.__cause__, SecurityError)
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if too_large else HTTPStatus.BAD_REQUEST
        self.logger.info("A WebSocket handshake was refused (%d): %s", status, error.__cause__ or error)
        response = self.conn.reject(status, f"{status.phrase}\n")
        self.handshake_complete = self.close_sent = True
        self.transport.write(response.serialize())
        self.transport.close()

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
        # The transport in the scope and the parser are parts of reference cycles. Without these cycles, the connection
        # is freed without a garbage collection.
        if hasattr(self, "scope"):
            self.scope["extensions"].pop(FRAMES_EXTENSION, None)
        self.conn.parser.close()
