"""The transports of streamed HTTP responses on daphne and uvicorn.

They know the state of the socket's buffer, and can drop the connection.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from .base import Transport
from .uvicorn_transport import unsent_bytes


class ResponseTransport(Transport):
    """The transport of a streamed HTTP response. This class uses nothing but ASGI."""

    def release(self) -> None:
        """Break reference cycles at the end of the response. This class does nothing."""


class UvicornResponse(ResponseTransport):
    """The transport of a response of uvicorn, whose `send` waits while the buffer is full.

    Args:
        send: the ASGI `send` of the request.
        cycle: uvicorn's object for the request.
        options: the other arguments of a base class.
    """

    drainable = True

    def __init__(self, send: Any, cycle: Any, **options: Any) -> None:
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
        return unsent_bytes(self._transport)


class DaphneResponse(ResponseTransport):
    """The transport of a response of daphne, whose `send` does not wait and buffers without limit.

    Args:
        send: the ASGI `send` of the request.
        request: Twisted's object for the request.
        options: the other arguments of a base class.
    """

    drainable = True

    def __init__(self, send: Any, request: Any, **options: Any) -> None:
        super().__init__(send, **options)
        self._request = request
        self._observer: Any = None

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register two callbacks for the state of the transport's buffer, see `Transport.attach`."""
        from .daphne import BufferObserver

        if not self.lost:
            self._observer = BufferObserver(pause, resume)
            self._request.registerProducer(self._observer, True)

    @property
    def _channel(self) -> Any:
        """The connection of the request; None if the request has ended."""
        return getattr(self._request, "channel", None)

    @property
    def lost(self) -> bool:
        """Whether the client has disconnected."""
        return self._channel is None or bool(self._request._disconnected)

    def release(self) -> None:
        """Drop the callbacks, which are part of a reference cycle of the request and the connection."""
        self._detach()
        if self._observer is not None:
            self._observer.release()

    def _detach(self) -> None:
        if self._request.producer is not None and self._channel is not None:
            self._request.unregisterProducer()

    def abort(self) -> None:
        """Drop the connection at once and discard its buffer."""
        if not self.lost:
            self._channel.transport.abortConnection()

    def unsent(self) -> int | None:
        """Return how many bytes are in the buffers of the transport and the kernel; None if that is unknown."""
        from . import daphne

        return None if self.lost else daphne.unsent_bytes(self._channel.transport)


def daphne_request(send: Any) -> Any:
    """Return Twisted's object for the request to which a `send` belongs; None if it does not belong to daphne."""
    if isinstance(send, partial) and len(send.args) == 1:
        server = getattr(send.func, "__self__", None)
        if any(cls.__module__ == "daphne.server" for cls in type(server).__mro__):
            return send.args[0]
    return None


def uvicorn_cycle(send: Any) -> Any:
    """Return uvicorn's object for the request to which a `send` belongs; None if it does not belong to uvicorn."""
    cycle = getattr(send, "__self__", None)
    is_uvicorn = any(cls.__module__.startswith("uvicorn.protocols.http.") for cls in type(cycle).__mro__)
    return cycle if is_uvicorn and hasattr(cycle, "transport") else None


def make_response_transport(send: Any, server_send: Any) -> ResponseTransport | None:
    """Return the transport of a response on daphne or uvicorn.

    Args:
        send: the ASGI `send` of the request, which may be wrapped by middlewares.
        server_send: a callable that may be the server's own `send`.

    Returns:
        The transport; None if `server_send` belongs to neither server.
    """
    if (request := daphne_request(server_send)) is not None:
        return DaphneResponse(send, request)
    if (cycle := uvicorn_cycle(server_send)) is not None:
        return UvicornResponse(send, cycle)
    return None
