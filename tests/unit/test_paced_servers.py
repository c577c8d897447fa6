"""In each iteration of the event loop, a paced server starts only a few of many new connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from autobahn.websocket import protocol as autobahn
from daphne.server import Server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.tcp import Port
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from uvicorn.config import Config
from uvicorn.server import ServerState

from reliable_cable.concurrency.pacing import PER_ITERATION, Pacer
from reliable_cable.servers.paced_daphne import PacedFactory, PacedServer, UnloggedWebSocketProtocol
from reliable_cable.servers.paced_uvicorn import PacedHTTPProtocol
from reliable_cable.servers.uvicorn import CableWebSocketProtocol
from tests.support.asyncio_transport import AsyncioTransport

from .wire import until

MANY = 5 * PER_ITERATION
HANDSHAKE = (
    b"GET /cable HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class IterationCounter:
    """Counts the iterations of the event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._handle = asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        self.count += 1
        self._handle = asyncio.get_running_loop().call_soon(self._tick)

    def stop(self) -> None:
        """Stop counting."""
        self._handle.cancel()


@contextmanager
def iteration_counter() -> Iterator[IterationCounter]:
    """Count iterations during the block."""
    counter = IterationCounter()
    try:
        yield counter
    finally:
        counter.stop()


# -- uvicorn -----------------------------------------------------------------------------------------------------------


class Uvicorn:
    """A server of uvicorn without sockets. It records in which iteration the application of each connection starts."""

    def __init__(self, counter: IterationCounter) -> None:
        self.started: list[int] = []
        self._counter = counter
        self._config = Config(self._application, interface="asgi3", log_config=None, ws=CableWebSocketProtocol)
        self._config.load()
        self._state = ServerState()
        # The pacer of the class belongs to one event loop, so each test uses its own subclass.
        self._protocol = type("OfThisTest", (PacedHTTPProtocol,), {"pacer": Pacer(PER_ITERATION)})

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        self.started.append(self._counter.count)
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": (await receive())["body"]})

    def connect(self) -> AsyncioTransport:
        """Create a connection, and return its transport."""
        transport = AsyncioTransport()
        transport.protocol = self._protocol(self._config, self._state, {}, asyncio.get_running_loop())
        transport.protocol.connection_made(transport)
        return transport

    async def wait_for_idle(self) -> None:
        """Wait until all started applications have ended."""
        while self._state.tasks:
            await asyncio.gather(*self._state.tasks)
            await asyncio.sleep(0)


async def test_uvicorn_starts_a_few_websockets_in_each_iteration() -> None:
    with iteration_counter() as counter:
        server = Uvicorn(counter)
        transports = [server.connect() for _ in range(MANY)]
        for transport in transports:
            transport.protocol.data_received(HANDSHAKE)
        assert sum(transport.reading for transport in transports) == PER_ITERATION, "queued connections were read"
        await until(lambda: len(server.started) == MANY)
        await server.wait_for_idle()
    assert max(Counter(server.started).values()) == PER_ITERATION
    assert all(transport.written[0].startswith(b"HTTP/1.1 101 ") for transport in transports)
    assert all(isinstance(transport.protocol, CableWebSocketProtocol) for transport in transports)


async def test_uvicorn_continues_to_read_a_request_that_arrives_in_pieces() -> None:
    with iteration_counter() as counter:
        server = Uvicorn(counter)
        transports = [server.connect() for _ in range(2 * PER_ITERATION)]
        for transport in transports:
            transport.protocol.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Le")
        await until(lambda: all(transport.reading for transport in transports))
        for transport in transports:
            transport.protocol.data_received(b"ngth: 5\r\nConnection: close\r\n\r\nhello")
        await until(lambda: all(transport.closing for transport in transports))
        await server.wait_for_idle()
    assert all(b"hello" in b"".join(transport.written) for transport in transports)


async def test_uvicorn_does_not_start_a_lost_connection() -> None:
    with iteration_counter() as counter:
        server = Uvicorn(counter)
        transports = [server.connect() for _ in range(2 * PER_ITERATION)]
        for transport in transports:
            transport.protocol.data_received(HANDSHAKE)
        transports[-1].closing = True
        transports[-1].protocol.connection_lost(None)
        await until(lambda: len(server.started) == 2 * PER_ITERATION - 1)
        await server.wait_for_idle()
    assert transports[-1].written == []


async def test_uvicorn_drops_a_connection_whose_data_causes_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = CableWebSocketProtocol.handle_connect

    def fail_for_some(self: CableWebSocketProtocol, event: Any) -> None:
        if event.path == "/fail":
            raise ZeroDivisionError
        connect(self, event)

    monkeypatch.setattr(CableWebSocketProtocol, "handle_connect", fail_for_some)
    failed: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context["exception"]))
    with iteration_counter() as counter:
        server = Uvicorn(counter)
        transports = [server.connect() for _ in range(2 * PER_ITERATION + 1)]
        for number, transport in enumerate(transports):
            transport.protocol.data_received(
                HANDSHAKE.replace(b"/cable", b"/fail") if number == PER_ITERATION else HANDSHAKE
            )
        await until(lambda: len(server.started) == 2 * PER_ITERATION)
        await server.wait_for_idle()
    assert [number for number, transport in enumerate(transports) if transport.aborted] == [PER_ITERATION]
    assert [type(error) for error in failed] == [ZeroDivisionError]


async def test_the_http_protocol_of_uvicorn_is_freed_when_a_websocket_starts() -> None:
    """The parser of httptools refers to the protocol, so the package sets the protocol's attribute `parser` to None."""
    with iteration_counter() as counter:
        server = Uvicorn(counter)
        transport = server.connect()
        former = transport.protocol
        assert former.parser is not None
        former.data_received(HANDSHAKE)
        assert former.parser is None
        await until(lambda: server.started)
        await server.wait_for_idle()


# -- daphne ------------------------------------------------------------------------------------------------------------


class Recorder(Protocol, TimeoutMixin):
    """A protocol that records the data of a paced connection."""

    def __init__(self) -> None:
        self.connections = 0
        self.received: list[tuple[int, bytes]] = []
        self.lost = False
        self.counter: Any = None

    def connectionMade(self) -> None:  # noqa: N802 - Twisted's name
        self.connections += 1

    def dataReceived(self, data: bytes) -> None:  # noqa: N802 - Twisted's name
        self.received.append((self.counter.count, data))

    def connectionLost(self, reason: Failure | None = None) -> None:  # noqa: N802 - Twisted's name
        self.lost = True


class Recorders(Factory):
    """Takes the place of the server's factory, and creates recorders."""

    def __init__(self, counter: IterationCounter | None) -> None:
        self.created: list[Recorder] = []
        self.stopped = False
        self._counter = counter

    def buildProtocol(self, addr: Any) -> Recorder | None:  # noqa: N802 - Twisted's name
        if addr is None:
            return None
        recorder = Recorder()
        recorder.counter = self._counter
        self.created.append(recorder)
        return recorder

    def doStop(self) -> None:  # noqa: N802 - Twisted's name
        self.stopped = True


def accept(factory: PacedFactory) -> Any:
    """Create a connection as Twisted does, and return its transport."""
    transport: Any = StringTransport()  # type: ignore[no-untyped-call]
    transport.protocol = factory.buildProtocol("an address")
    transport.protocol.makeConnection(transport)
    return transport


async def test_daphne_starts_a_few_connections_in_each_iteration() -> None:
    with iteration_counter() as counter:
        recorders = Recorders(counter)
        factory = PacedFactory(recorders)
        transports = [accept(factory) for _ in range(MANY)]
        for transport in transports:
            transport.protocol.dataReceived(b"first")
        paused = [transport.producerState for transport in transports]
        assert paused.count("producing") == PER_ITERATION, "queued connections must not be read"
        await until(lambda: all(recorder.received for recorder in recorders.created))
    assert max(Counter(recorder.received[0][0] for recorder in recorders.created).values()) == PER_ITERATION
    assert [recorder.connections for recorder in recorders.created] == [1] * MANY
    for transport in transports:
        assert transport.producerState == "producing"
        transport.protocol.dataReceived(b"second")
    assert {b"".join(data for _, data in recorder.received) for recorder in recorders.created} == {b"firstsecond"}


async def test_daphne_does_not_start_a_lost_connection() -> None:
    with iteration_counter() as counter:
        recorders = Recorders(counter)
        factory = PacedFactory(recorders)
        transports = [accept(factory) for _ in range(PER_ITERATION + 2)]
        for transport in transports:
            transport.protocol.dataReceived(b"first")
        transports[-2].connected = False
        transports[-2].protocol.connectionLost()
        await until(lambda: recorders.created[-1].received)
    assert recorders.created[-2].lost
    assert recorders.created[-2].received == []


async def test_daphne_drops_a_connection_whose_data_causes_an_error() -> None:
    failed: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context["exception"]))
    with iteration_counter() as counter:
        recorders = Recorders(counter)
        factory = PacedFactory(recorders)
        transports = [accept(factory) for _ in range(PER_ITERATION + 2)]
        recorders.created[-2].counter = None
        for transport in transports:
            transport.protocol.dataReceived(b"first")
        await until(lambda: recorders.created[-1].received)
    assert [transport.disconnecting for transport in transports] == [False] * PER_ITERATION + [True, False]
    assert len(failed) == 1


async def test_the_wrapped_factory_can_refuse_connections_and_is_stopped() -> None:
    with iteration_counter() as counter:
        recorders = Recorders(counter)
        factory = PacedFactory(recorders)
        assert factory.buildProtocol(None) is None
        factory.doStop()
    assert recorders.stopped


def test_each_port_of_daphne_is_paced() -> None:
    """daphne's server calls `listen_success` with each port, and the package overrides this method."""
    assert "listen_success" in Server.run.__code__.co_names
    server = PacedServer(application=None, endpoints=["tcp:0"])
    server.ws_factory = WebSocketFactory(server)
    port = Port(0, Recorders(None))  # type: ignore[arg-type]
    port.getHost = lambda: None  # type: ignore[method-assign]
    server.listen_success(port)
    assert isinstance(port.factory, PacedFactory)


@pytest.mark.parametrize("protocol", [WebSocketProtocol, UnloggedWebSocketProtocol])
def test_websockets_of_daphne_have_the_options_of_the_server(protocol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have them without autobahn's debug message, which autobahn would format even if it is not logged."""
    formatted: list[Any] = []
    monkeypatch.setattr(autobahn, "pformat", formatted.append)
    factory = WebSocketFactory(Server(application=None, endpoints=["tcp:0"]))
    factory.protocol = protocol
    factory.setProtocolOptions(autoPingTimeout=7, allowNullOrigin=False, openHandshakeTimeout=0)
    connection = factory.buildProtocol(None)
    connection.makeConnection(StringTransport())  # type: ignore[no-untyped-call]
    assert {name: getattr(connection, name) for name in WebSocketProtocol.CONFIG_ATTRS} == {
        name: getattr(factory, name) for name in WebSocketProtocol.CONFIG_ATTRS
    }
    assert [len(options) for options in formatted] == [len(protocol.CONFIG_ATTRS)]
