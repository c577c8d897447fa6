"""The transports for readers of server-sent events on daphne and uvicorn.

Unlike their base class, they know the state of the socket's buffer, and can drop the connection.
"""

from typing import Any

from twisted.internet import tcp

from .daphne import write_directly
from .events import EventTransport, Send
from .responses import DaphneResponse, UvicornResponse, daphne_request, uvicorn_cycle


class UvicornEventTransport(UvicornResponse, EventTransport):
    """The transport for a reader on uvicorn."""


class DaphneEventTransport(DaphneResponse, EventTransport):
    """The transport for a reader on daphne."""

    def __init__(self, send: Send, request: Any, *, unwrapped: bool, **options: Any) -> None:
        super().__init__(send, request, **options)
        #: Twisted's transport, if parts of the body may be written to its socket directly; None otherwise.
        self._direct: tcp.Connection | None = None
        transport = None if self.lost else request.channel.transport
        if unwrapped and isinstance(transport, tcp.Connection) and not transport.TLS:
            self._direct = transport

    async def _respond_part(self, body: bytes) -> None:
        # The part is written directly. Twisted would copy it into a buffer, and write it later.
        if self._direct is None or not self._request.chunked:
            await super()._respond_part(body)
        elif body and not self.lost:  # an empty part would end the body
            write_directly(self._direct, self._direct.socket.send, b"%x\r\n%b\r\n" % (len(body), body))

    def _end(self) -> None:
        super()._end()
        self._detach()


def make_event_transport(send: Any, server_send: Any, **options: Any) -> EventTransport | None:
    """Return the transport for a request on daphne or uvicorn.

    Args:
        send: the ASGI `send` of the request, which may be wrapped by middlewares.
        server_send: a callable that may be the server's own `send`.
        options: the other arguments of `EventTransport`.

    Returns:
        The transport; None if `server_send` belongs to neither server.
    """
    if (request := daphne_request(server_send)) is not None:
        return DaphneEventTransport(send, request, unwrapped=send is server_send, **options)
    if (cycle := uvicorn_cycle(server_send)) is not None:
        return UvicornEventTransport(send, cycle, **options)
    return None
