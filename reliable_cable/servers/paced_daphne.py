"""A daphne server that starts only a few connections in each iteration of the event loop.

`manage.py cable_serve --server daphne` uses this server; see paced_uvicorn.py for the reason. The server also limits
the time that a client may take to send the headers of a request. This module needs daphne.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

# This must be imported first, because it installs Twisted's reactor.
from daphne.server import Server, reactor  # isort: skip
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Port
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from reliable_cable.concurrency.pacing import PER_ITERATION, Pacer

from .limits import HEADERS_TIMEOUT


class _PendingProtocol(Protocol):
    """The protocol of a connection that is waiting for the pacer. It stores the first data, and pauses reading."""

    transport: Any

    def __init__(self, protocol: Any, pacer: Pacer) -> None:
        self._protocol = protocol
        self._pacer = pacer

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        self._protocol.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        self.transport.pauseProducing()
        # The timeout is for slow clients, so it must not run while the connection is waiting for the pacer.
        self._protocol.setTimeout(None)
        self._pacer.run(partial(self._begin, data))

    def _begin(self, data: bytes) -> None:
        if not self.transport.connected:
            return
        self.transport.protocol = self._protocol
        self._protocol.setTimeout(HEADERS_TIMEOUT)
        self.transport.resumeProducing()
        try:
            self._protocol.dataReceived(data)
        except Exception:
            # Twisted itself drops the connection in the same way if a protocol raises an error.
            self.transport.abortConnection()
            raise

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802 - Twisted's name
        self._protocol.connectionLost(reason)


class PacedFactory(Factory):
    """A Twisted factory that wraps the factory of a server, so that connections start when the pacer admits them.

    Args:
        factory: the Twisted factory of the server.
    """

    def __init__(self, factory: Any) -> None:
        self._factory = factory
        self._pacer = Pacer(PER_ITERATION)

    def buildProtocol(self, addr: Any) -> Protocol | None:  # noqa: N802 - Twisted's name
        """Return the protocol of a new connection; None to refuse it."""
        protocol = self._factory.buildProtocol(addr)
        return None if protocol is None else _PendingProtocol(protocol, self._pacer)

    def doStop(self) -> None:  # noqa: N802 - Twisted's name
        """Stop the wrapped factory, which the port started before this factory replaced it."""
        self._factory.doStop()


#: `HTTPChannel` as `Any`, because most methods of that class have no types.
_HTTPChannel: Any = HTTPChannel


class TimedHTTPChannel(_HTTPChannel):  # type: ignore[misc]
    """Twisted's HTTP connection, with a limit for the time until the headers of a request are complete.

    For the first request, the limit is `HEADERS_TIMEOUT`. For each later request, it is Twisted's own timeout, which
    begins after the previous response. Twisted's own class restarts the timeout whenever a byte is received.
    """

    timeOut: float | None  # noqa: N815 - Twisted's name

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        """Limit the time until the headers of the first request are complete."""
        # Twisted's own method starts a timer for `timeOut`. If the time were shortened afterwards, Twisted would search
        # for this timer among the timers of all connections.
        self._idle_timeout, self.timeOut = self.timeOut, HEADERS_TIMEOUT
        super().connectionMade()

    def resetTimeout(self) -> None:  # noqa: N802 - Twisted's name
        """Restart the timeout, except while headers are being received."""
        if not self.line_mode:
            super().resetTimeout()

    def allHeadersReceived(self) -> None:  # noqa: N802 - Twisted's name
        """Set Twisted's own timeout for the body and for later requests of the connection."""
        self.setTimeout(self._idle_timeout)
        super().allHeadersReceived()


class UnloggedWebSocketProtocol(WebSocketProtocol):  # type: ignore[misc]  # daphne is untyped
    """daphne's WebSocket connection, without autobahn's debug message about the options of each new connection.

    autobahn formats this message even if it is not logged, which takes a quarter of the CPU time of a connect.
    """

    #: The options that autobahn copies from the factory and formats. They are copied by `connectionMade` instead.
    CONFIG_ATTRS: tuple[str, ...] = ()

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        """Copy the factory's options that are not set, and begin the handshake."""
        for name in WebSocketProtocol.CONFIG_ATTRS:
            if not hasattr(self, name):
                setattr(self, name, getattr(self.factory, name))
        super().connectionMade()


class PacedServer(Server):  # type: ignore[misc]  # daphne is untyped
    """daphne's server, with a pacer for new connections, and with a time limit for the headers of a request.

    Args:
        application: the ASGI application.
        on_start: a function that is called in the event loop, before the first request is served.
        options: the other arguments of daphne's server.
    """

    def __init__(self, application: Any, *, on_start: Callable[[], None] = lambda: None, **options: Any) -> None:
        super().__init__(application, **options)
        self._on_start = on_start

    def run(self) -> None:
        """Serve until a signal stops the server."""
        # This is the first call of the event loop. Twisted installs its signal handlers before it.
        reactor.callLater(0, self._on_start)
        super().run()

    def listen_success(self, port: Any) -> None:
        """Add the pacer and the time limit to a port on which the server has started to listen."""
        super().listen_success(port)
        self.ws_factory.protocol = UnloggedWebSocketProtocol
        if isinstance(port, Port):
            factory: Any = port.factory
            factory.protocol = TimedHTTPChannel
            port.factory = PacedFactory(factory)
