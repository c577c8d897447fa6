"""A request to daphne without a server. Tests decide when its transport writes to the socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from daphne.http_protocol import HTTPFactory
from daphne.server import Server
from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.python.failure import Failure


class Reactor:
    """The part of Twisted's reactor that a transport uses. It never calls `doWrite`: tests make the transport write."""

    def __init__(self) -> None:
        self.writers: set[Any] = set()
        self.calls: list[Callable[[], None]] = []

    def addReader(self, reader: Any) -> None: ...  # noqa: N802 - Twisted's names

    def removeReader(self, reader: Any) -> None: ...  # noqa: N802

    def addWriter(self, writer: Any) -> None:  # noqa: N802
        self.writers.add(writer)

    def removeWriter(self, writer: Any) -> None:  # noqa: N802
        self.writers.discard(writer)

    def callLater(self, delay: float, call: Callable[..., None], *args: Any) -> None:  # noqa: N802
        self.calls.append(lambda: call(*args))


class DaphneRequest:
    """A request to daphne's protocol, over a real socket with a transport of Twisted.

    Args:
        application: the ASGI application that serves the request.
        request: the bytes of the request.
    """

    def __init__(self, application: Any, request: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            self.client.settimeout(30)
            near, address = listener.accept()
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.application = application
        self.reactor = Reactor()
        server = Server(application=self.application, endpoints=["tcp:0"])
        server.connections = {}  # as `Server.run` does
        protocol: Any = HTTPFactory(server).buildProtocol(IPv4Address("TCP", *address))
        self.connection: Any = tcp.Server(near, protocol, address, None, 1, self.reactor)  # type: ignore[arg-type]
        protocol.makeConnection(self.connection)
        protocol.dataReceived(request)

    def flush(self) -> None:
        """Write the buffer of the transport to the socket."""
        while self.reactor.writers:
            self.connection.doWrite()

    def lose(self) -> None:
        """Make all delayed calls, as if their time had come, and lose the connection."""
        for call in self.reactor.calls:
            call()
        if self.connection.connected:
            self.connection.connectionLost(Failure(ConnectionError()))  # type: ignore[no-untyped-call]
        self.client.close()
