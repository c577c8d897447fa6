"""daphne, which begins a few connections in each turn of the event loop, as paced_uvicorn.py does.

`manage.py cable_serve --server daphne` uses it. Needs daphne.
"""

from __future__ import annotations

from functools import partial
from typing import Any

# First: it installs the reactor.
from daphne.server import Server  # isort: skip
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.tcp import Port
from twisted.python.failure import Failure

from reliable_cable.concurrency.pacing import PER_ITERATION, Pacer


class _Waiting(Protocol):
    """What a connection has until its turn has come: its first data wait, and no more are read."""

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
            # As Twisted does when a protocol fails.
            self.transport.abortConnection()
            raise

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802 - Twisted's name
        self._protocol.connectionLost(reason)


class PacedFactory(Factory):
    """Builds the protocols of another factory, which begin when their turn has come.

    Args:
        factory: Twisted's, of a server.
    """

    def __init__(self, factory: Any) -> None:
        self._factory = factory
        self._pacer = Pacer(PER_ITERATION)

    def buildProtocol(self, addr: Any) -> Protocol | None:  # noqa: N802 - Twisted's name
        """Return the protocol of a new connection."""
        protocol = self._factory.buildProtocol(addr)
        return None if protocol is None else _Waiting(protocol, self._pacer)

    def doStop(self) -> None:  # noqa: N802 - Twisted's name
        """The port, which has begun with the other factory, closes."""
        self._factory.doStop()


class PacedServer(Server):  # type: ignore[misc]  # daphne is untyped
    """daphne's server, paced."""

    def listen_success(self, port: Any) -> None:
        """Pace what a port accepts."""
        super().listen_success(port)
        if isinstance(port, Port):
            port.factory = PacedFactory(port.factory)
