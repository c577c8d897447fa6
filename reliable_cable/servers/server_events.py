"""The transports for readers of server-sent events on daphne and uvicorn.

Unlike their base class, they know the state of the socket's buffer, and can drop the connection.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet import tcp

from .base import unacknowledged_bytes
from .daphne import BufferObserver, unsent_bytes, write_directly
from .events import EventTransport, Send


class UvicornEventTransport(EventTransport):
    """The transport for a reader on uvicorn, whose `send` waits while the buffer is full."""

    drainable = True

    def __init__(self, send: Send, cycle: Any, **options: Any) -> None:
        super().__init__(send, **options)
        self._transport = cycle.transport
        protocol = getattr(cycle.on_response, "__self__", None)
        self.grace = getattr(getattr(protocol, "config", None), "timeout_graceful_shutdown", None) or 0.0

    @property
    def lost(self) -> bool:
        """Whether the client has disconnected."""
        return bool(self._transport.is_closing())

    def abort(self) -> None:
        """Drop the connection at once and discard its buffer."""
        self._transport.abort()

    def unsent(self) -> int | None:
        """Return how many bytes are in the buffers of the transport and the kernel; None if that is unknown."""
        socket = self._transport.get_extra_info("socket")
        pending = None if socket is None or self.lost else unacknowledged_bytes(socket.fileno())
        return None if pending is None else self._transport.get_write_buffer_size() + pending


class DaphneEventTransport(EventTransport):
    """The transport for a reader on daphne, whose `send` does not wait and buffers without limit."""

    drainable = True

    def __init__(self, send: Send, request: Any, *, unwrapped: bool, **options: Any) -> None:
        super().__init__(send, **options)
        self._request = request
        #: Twisted's transport, if parts of the body may be written to its socket directly; None otherwise.
        self._direct: tcp.Connection | None = None
        transport = None if self.lost else request.channel.transport
        if unwrapped and isinstance(transport, tcp.Connection) and not transport.TLS:
            self._direct = transport
        self._observer: BufferObserver | None = None

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register two callbacks for the state of the transport's buffer, see `Transport.attach`."""
        if not self.lost:
            self._observer = BufferObserver(pause, resume)
            self._request.registerProducer(self._observer, True)

    @property
    def lost(self) -> bool:
        """Whether the client has disconnected."""
        return self._request.channel is None or bool(self._request._disconnected)

    async def _respond_part(self, body: bytes) -> None:
        # The part is written directly. Twisted would copy it into a buffer, and write it later.
        if self._direct is None or not self._request.chunked:
            await super()._respond_part(body)
        elif body and not self.lost:  # an empty part would end the body
            write_directly(self._direct, self._direct.socket.send, b"%x\r\n%b\r\n" % (len(body), body))

    def _end(self) -> None:
        super()._end()
        if self._request.producer is not None and self._request.channel is not None:
            self._request.unregisterProducer()

    def release(self) -> None:
        """Drop the callbacks, which are part of a reference cycle of the request and the connection."""
        if self._observer is not None:
            self._observer.release()

    def abort(self) -> None:
        """Drop the connection at once and discard its buffer."""
        if not self.lost:
            self._request.channel.transport.abortConnection()

    def unsent(self) -> int | None:
        """Return how many bytes are in the buffers of the transport and the kernel; None if that is unknown."""
        return None if self.lost else unsent_bytes(self._request.channel.transport)


def make_event_transport(send: Any, server_send: Any, **options: Any) -> EventTransport | None:
    """Return the transport for a request on daphne or uvicorn.

    Args:
        send: the ASGI `send` of the request, which may be wrapped by middlewares.
        server_send: a callable that may be the server's own `send`.
        options: the other arguments of `EventTransport`.

    Returns:
        The transport; None if `server_send` belongs to neither server.
    """
    if isinstance(server_send, partial) and len(server_send.args) == 1:
        server = getattr(server_send.func, "__self__", None)
        if any(cls.__module__ == "daphne.server" for cls in type(server).__mro__):
            return DaphneEventTransport(send, server_send.args[0], unwrapped=send is server_send, **options)
    cycle = getattr(server_send, "__self__", None)
    is_uvicorn = any(cls.__module__.startswith("uvicorn.protocols.http.") for cls in type(cycle).__mro__)
    return UvicornEventTransport(send, cycle, **options) if is_uvicorn and hasattr(cycle, "transport") else None
