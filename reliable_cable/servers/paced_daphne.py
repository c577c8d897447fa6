"""A daphne server that starts only a few connections in each iteration of the event loop.

`manage.py cable_serve --server daphne` uses it; see paced_uvicorn.py for the reason. This module needs daphne.
"""

from functools import partial
from typing import Any

# This must be imported first, because it installs Twisted's reactor.
from daphne.server import Server  # isort: skip
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Port
from twisted.python.failure import Failure

from reliable_cable.concurrency.pacing import PER_ITERATION, Pacer


class _PendingProtocol(Protocol):
    """The protocol of a connection until the pacer admits it. It holds the first data and pauses reading."""

    transport: Any

    def __init__(self, protocol: Any, pacer: Pacer) -> None:
        self._protocol = protocol
        self._pacer = pacer

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        self._protocol.makeConnection(self.transport)

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        self.transport.pauseProducing()
        self._pacer.run(partial(self._begin, data))

    def _begin(self, data: bytes) -> None:
        if not self.transport.connected:
            return
        self.transport.protocol = self._protocol
        self.transport.resumeProducing()
        try:
            self._protocol.dataReceived(data)
        except Exception:
            # Twisted does the same when a protocol raises an error.
            self.transport.abortConnection()
            raise

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802 - Twisted's name
        self._protocol.connectionLost(reason)


class PacedFactory(Factory):
    """Wraps the factory of a server so that its connections start when the pacer admits them.

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
        """Stop the wrapped factory. The port had started it before it was wrapped."""
        self._factory.doStop()


class PacedServer(Server):  # type: ignore[misc]  # daphne is untyped
    """daphne's server with paced connections."""

    def listen_success(self, port: Any) -> None:
        """Pace the connections of a port on which the server has started to listen."""
        super().listen_success(port)
        if isinstance(port, Port):
            port.factory = PacedFactory(port.factory)
