"""The transports of connections work with daphne and uvicorn, whose internals may change in any release."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from channels.sessions import CookieMiddleware, SessionMiddleware
from daphne.server import Server
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet import tcp
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from reliable_cable.servers import transport_for
from reliable_cable.servers.base import Transport
from reliable_cable.servers.daphne import DaphneTransport
from reliable_cable.servers.uvicorn import CableWebSocketProtocol
from reliable_cable.servers.uvicorn_transport import UvicornTransport
from tests.support.asyncio_transport import AsyncioTransport
from tests.support.daphne_request import Reactor


class TwistedTransport:
    """The part of a Twisted transport that the package uses."""

    def __init__(self) -> None:
        self.producers: list[Any] = ["the producer of the handshake"]
        self.aborted = False
        self.reading = True

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.reading = False

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        self.reading = True

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802 - Twisted's name
        assert not self.producers
        assert streaming
        self.producers.append(producer)

    def unregisterProducer(self) -> None:  # noqa: N802 - Twisted's name
        self.producers.clear()


def daphne_send() -> tuple[Any, WebSocketProtocol]:
    server = Server(application=None, endpoints=["tcp:0"])
    protocol = WebSocketProtocol()
    protocol.transport = TwistedTransport()
    return partial(server.handle_reply, protocol), protocol


def test_the_send_of_daphne_is_a_partial_of_its_reply_method() -> None:
    """`create_application` creates the partial, so its code must name both functions."""
    names = Server.create_application.__code__.co_names
    assert "partial" in names
    assert "handle_reply" in names
    send, _ = daphne_send()
    assert isinstance(transport_for({}, send), DaphneTransport)


def test_a_producer_observes_the_buffer_of_daphne() -> None:
    send, protocol = daphne_send()
    calls: list[str] = []
    transport_for({}, send).attach(lambda: calls.append("pause"), lambda: calls.append("resume"))
    (producer,) = protocol.transport.producers
    producer.pauseProducing()
    producer.resumeProducing()
    assert calls == ["pause", "resume"]
    producer.stopProducing()
    assert calls == ["pause", "resume", "pause"], "nothing may be written to a lost connection"


def test_daphne_connections_are_aborted_through_autobahn(monkeypatch: pytest.MonkeyPatch) -> None:
    send, _ = daphne_send()
    calls: list[bool] = []
    monkeypatch.setattr(WebSocketProtocol, "dropConnection", lambda self, abort: calls.append(abort))
    transport_for({}, send).abort()
    assert calls == [True]


def test_a_lost_connection_of_daphne_is_known() -> None:
    send, protocol = daphne_send()
    protocol.state = WebSocketProtocol.STATE_CONNECTING
    assert not transport_for({}, send).lost
    protocol.state = WebSocketProtocol.STATE_CLOSED
    assert transport_for({}, send).lost


class Call:
    """A delayed call of Twisted or of an event loop."""

    cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


def test_while_daphne_reads_nothing_its_ping_need_not_be_answered() -> None:
    send, protocol = daphne_send()
    protocol.state = WebSocketProtocol.STATE_OPEN
    protocol.last_ping, timeout = 0.0, Call()
    protocol.autoPingTimeoutCall = timeout
    transport = transport_for({}, send)
    transport.pause_reading()
    assert not protocol.transport.reading
    assert timeout.cancelled
    assert protocol.last_ping > time.time() - 10, "daphne sends the next ping later"
    transport.resume_reading()
    assert protocol.transport.reading


def test_daphne_reads_nothing_more_of_a_connection_that_is_being_closed() -> None:
    send, protocol = daphne_send()
    protocol.state = WebSocketProtocol.STATE_OPEN
    transport = transport_for({}, send)
    transport.stop_reading()
    transport.resume_reading()
    assert not protocol.transport.reading


async def uvicorn_send(**options: Any) -> tuple[Any, WebSocketsSansIOProtocol]:
    async def application(scope: Any, receive: Any, send: Any) -> None: ...

    config = Config(application, log_config=None, **options)
    config.load()
    protocol = WebSocketsSansIOProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    return protocol.send, protocol


async def test_the_send_of_uvicorn_is_a_method_of_its_protocol() -> None:
    send, protocol = await uvicorn_send()

    class AbortableTransport:
        aborted = False

        def abort(self) -> None:
            self.aborted = True

    protocol.transport = AbortableTransport()  # type: ignore[assignment]
    connection = transport_for({}, send)
    assert isinstance(connection, UvicornTransport)
    connection.abort()
    assert protocol.transport.aborted  # type: ignore[attr-defined]


async def test_a_lost_connection_of_uvicorn_is_known() -> None:
    send, protocol = await uvicorn_send()
    transport = AsyncioTransport()
    protocol.transport = transport  # type: ignore[assignment]
    assert not transport_for({}, send).lost
    transport.closing = True
    assert transport_for({}, send).lost


async def test_while_uvicorn_reads_nothing_its_ping_need_not_be_answered() -> None:
    send, protocol = await uvicorn_send()
    transport, timeout = transport_for({}, send), Call()
    transport.pause_reading()
    assert protocol.pong_timer is None
    protocol.pong_timer = timeout  # type: ignore[assignment]
    transport.pause_reading()
    assert timeout.cancelled
    timer: Any = protocol.pong_timer
    assert timer.when() > asyncio.get_running_loop().time() + 15, "uvicorn waits for 20 s"
    timer.cancel()


async def test_uvicorn_reads_nothing_more_of_a_connection_that_is_being_closed() -> None:
    send, protocol = await uvicorn_send()
    protocol.transport = AsyncioTransport()  # type: ignore[assignment]
    transport_for({}, send).stop_reading()
    assert not protocol.transport.reading  # type: ignore[attr-defined]


async def test_the_grace_is_the_configured_shutdown_timeout() -> None:
    for timeout, grace in ((30, 30), (None, 0)):
        send, protocol = await uvicorn_send(timeout_graceful_shutdown=timeout)
        protocol.transport = AsyncioTransport()  # type: ignore[assignment]
        assert transport_for({}, send).grace == grace


async def test_the_transport_is_found_behind_middlewares() -> None:
    transports: list[Transport] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        transports.append(transport_for({}, send))

    def wrap_send(inner: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def wrapped(message: Any) -> None:
                await send(message)

            await inner(scope, receive, wrapped)

        return middleware

    send, _ = daphne_send()
    stack = wrap_send(CookieMiddleware(SessionMiddleware(wrap_send(application))))
    await stack({"type": "websocket", "headers": []}, None, send)
    assert isinstance(transports[0], DaphneTransport)
    assert transports[0].send is send, "messages must bypass the middlewares"


async def test_an_unknown_server_is_only_asked_to_close() -> None:
    sent: asyncio.Queue[Any] = asyncio.Queue()

    async def send(message: Any) -> None:
        sent.put_nowait(message)

    connection = transport_for({}, send)
    assert type(connection) is Transport
    assert not connection.drainable
    connection.attach(lambda: None, lambda: None)
    connection.abort()
    assert await asyncio.wait_for(sent.get(), 5) == {"type": "websocket.close", "code": 1000}


# -- frames through daphne ---------------------------------------------------------------------------------------------


class DaphneConnection:
    """A pair of sockets. The near one has a transport of Twisted, as in daphne."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.reactor = Reactor()
        self.protocol = WebSocketProtocol()
        self.transport: Any = tcp.Connection(self.near, self.protocol, self.reactor)  # type: ignore[arg-type]
        self.transport.connected = True
        self.protocol.transport = self.transport
        self.protocol.state = WebSocketProtocol.STATE_OPEN
        server = Server(application=None, endpoints=["tcp:0"])
        self.connection = transport_for({}, partial(server.handle_reply, self.protocol))
        self.events: list[str] = []
        self.connection.attach(lambda: self.events.append("pause"), lambda: self.events.append("resume"))

    def write(self, frame: bytes) -> None:
        assert self.connection.write is not None
        self.connection.write(frame)

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def daphne() -> Iterator[DaphneConnection]:
    connection = DaphneConnection()
    yield connection
    connection.close()


def test_daphne_frames_are_written_directly_to_an_idle_socket(daphne: DaphneConnection) -> None:
    daphne.write(b"one")
    daphne.write(b"two")
    assert daphne.far.recv(100) == b"onetwo"
    assert not daphne.reactor.writers


def test_a_full_socket_gets_the_rest_through_the_transport_in_order(daphne: DaphneConnection) -> None:
    frames = [bytes([65 + n]) * 20_000 for n in range(20)]
    for frame in frames[:10]:
        daphne.write(frame)
    assert daphne.reactor.writers, "the transport must have the rest to write"
    assert "pause" in daphne.events
    received = b""
    for frame in frames[10:]:
        received += daphne.far.recv(1000)
        daphne.transport.doWrite()
        daphne.write(frame)
    while daphne.reactor.writers:
        received += daphne.far.recv(100_000)
        daphne.transport.doWrite()
    daphne.write(b"end")
    daphne.far.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            received += daphne.far.recv(100_000)
    assert received == b"".join(frames) + b"end"
    assert daphne.events[-1] == "resume"


def test_the_number_of_unacknowledged_bytes_is_known(daphne: DaphneConnection) -> None:
    daphne.write(b"x" * 100_000)
    before = daphne.connection.unsent()
    assert before is not None
    assert before >= 90_000, "some bytes may be in the buffer of the other side"
    while daphne.far.recv(1 << 16, socket.MSG_DONTWAIT):
        if daphne.reactor.writers:
            daphne.transport.doWrite()
        after = daphne.connection.unsent()
        assert after is not None
        assert after < before
        if not after:
            break
        before = after


def test_data_in_the_transport_is_written_first(daphne: DaphneConnection) -> None:
    daphne.transport.write(b"written by the server, ")
    daphne.write(b"then a frame")
    daphne.transport.doWrite()
    assert daphne.far.recv(100) == b"written by the server, then a frame"


def test_nothing_is_written_after_a_close_or_to_a_broken_socket(daphne: DaphneConnection) -> None:
    daphne.protocol.state = WebSocketProtocol.STATE_CLOSING
    daphne.write(b"late")
    daphne.protocol.state = WebSocketProtocol.STATE_OPEN
    daphne.far.close()
    daphne.write(b"to a closed socket")
    daphne.write(b"to a closed socket")
    assert not daphne.reactor.writers


def test_shared_frames_are_not_used_with_tls() -> None:
    send, _ = daphne_send()
    assert transport_for({}, send).write is None


# -- frames through uvicorn --------------------------------------------------------------------------------------------


async def test_the_uvicorn_protocol_offers_frames_in_the_scope() -> None:
    scopes: asyncio.Queue[Any] = asyncio.Queue()
    done = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await scopes.put((scope, send))
        await done.wait()

    config = Config(application, log_config=None)
    config.load()
    protocol = CableWebSocketProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    transport = AsyncioTransport()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    protocol.data_received(
        b"GET /cable HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    scope, send = await scopes.get()
    connection = transport_for(scope, send)
    events: list[str] = []
    connection.attach(lambda: events.append("pause"), lambda: events.append("resume"))
    assert connection.drainable
    await send({"type": "websocket.accept"})
    assert b"permessage-deflate" not in transport.written[0], "shared frames cannot be compressed for each connection"
    assert connection.write is not None
    connection.write(b"frame")
    assert transport.written[1] == b"frame"
    protocol.pause_writing()
    assert not protocol.writable.is_set()
    protocol.resume_writing()
    assert protocol.writable.is_set()
    assert events == ["pause", "resume"]
    protocol.connection_lost(None)
    protocol.resume_writing()
    assert events == ["pause", "resume", "pause"], "nothing may be written to a lost connection"
    done.set()
    await asyncio.gather(*protocol.tasks)
