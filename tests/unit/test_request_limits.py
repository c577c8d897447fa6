"""The servers of `cable_serve` limit the size of request headers, and the time to send them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.web.http import Request
from uvicorn.config import Config
from uvicorn.server import ServerState

from reliable_cable.concurrency.pacing import Pacer
from reliable_cable.servers.limits import HEADERS_TIMEOUT, MAX_HEADERS_SIZE
from reliable_cable.servers.paced_daphne import PacedFactory, TimedHTTPChannel
from reliable_cable.servers.paced_uvicorn import PacedHTTPProtocol
from reliable_cable.servers.uvicorn import CableWebSocketProtocol
from tests.support.asyncio_transport import AsyncioTransport
from tests.support.virtual_loop import VirtualLoop

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"GET /cable HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)


# -- uvicorn -----------------------------------------------------------------------------------------------------------


class Uvicorn:
    """A server of uvicorn without sockets, in virtual time. Its application takes `response_time` seconds."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.response_time = 0.0
        self.loop = loop
        self._config = Config(self._application, interface="asgi3", log_config=None, ws=CableWebSocketProtocol)
        self._config.load()
        self._protocol = type("OfThisTest", (PacedHTTPProtocol,), {"pacer": Pacer(1)})

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await asyncio.sleep(1000)
            return
        await asyncio.sleep(self.response_time)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    def connect(self) -> AsyncioTransport:
        transport = AsyncioTransport()

        def connect() -> None:
            transport.protocol = self._protocol(self._config, ServerState(), {}, self.loop)
            transport.protocol.connection_made(transport)

        self.loop.call(connect)
        return transport

    def receive(self, transport: AsyncioTransport, data: bytes) -> None:
        self.loop.call(lambda: None if transport.closing else transport.protocol.data_received(data))
        self.loop.iterate(5)


@pytest.fixture
def uvicorn(loop: VirtualLoop) -> Uvicorn:
    return Uvicorn(loop)


class TestUvicorn:
    @pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "a part of the headers"])
    def test_a_client_that_sends_no_more_is_disconnected(
        self, uvicorn: Uvicorn, loop: VirtualLoop, first: bytes
    ) -> None:
        transport = uvicorn.connect()
        if first:
            uvicorn.receive(transport, first)
        loop.run_for(HEADERS_TIMEOUT - 0.1)
        assert not transport.closing
        loop.run_for(0.2)
        assert transport.closing

    def test_slow_headers_do_not_extend_the_time(self, uvicorn: Uvicorn, loop: VirtualLoop) -> None:
        transport = uvicorn.connect()
        uvicorn.receive(transport, b"GET / HTTP/1.1\r\nHost: x\r\n")
        for _ in range(int(HEADERS_TIMEOUT) + 1):
            uvicorn.receive(transport, b"x: x\r\n")
            loop.run_for(1)
        assert transport.closing

    def test_headers_that_are_too_large_are_answered_with_431(self, uvicorn: Uvicorn) -> None:
        transport = uvicorn.connect()
        uvicorn.receive(transport, b"GET / HTTP/1.1\r\nHost: x\r\n")
        for _ in range(MAX_HEADERS_SIZE // 1000):
            uvicorn.receive(transport, b"x: " + b"x" * 995 + b"\r\n")
        assert not transport.closing
        uvicorn.receive(transport, b"x" * 1000)
        assert transport.closing
        assert transport.written[0].startswith(b"HTTP/1.1 431 ")

    def test_the_limits_hold_for_the_second_request_too(self, uvicorn: Uvicorn, loop: VirtualLoop) -> None:
        transport = uvicorn.connect()
        uvicorn.receive(transport, REQUEST)
        loop.run_for(1)
        uvicorn.receive(transport, b"GET / HTTP/1.1\r\n")
        loop.run_for(HEADERS_TIMEOUT + 1)
        assert transport.closing
        assert transport.written[0].startswith(b"HTTP/1.1 200 ")

    def test_an_empty_line_between_requests_does_not_keep_the_connection(
        self, uvicorn: Uvicorn, loop: VirtualLoop
    ) -> None:
        transport = uvicorn.connect()
        uvicorn.receive(transport, REQUEST)
        loop.run_for(1)
        uvicorn.receive(transport, b"\r\n")
        loop.run_for(HEADERS_TIMEOUT + 1)
        assert transport.closing

    def test_a_slow_response_is_not_cut_by_the_beginning_of_another_request(
        self, uvicorn: Uvicorn, loop: VirtualLoop
    ) -> None:
        uvicorn.response_time = 3 * HEADERS_TIMEOUT
        transport = uvicorn.connect()
        uvicorn.receive(transport, REQUEST + b"GET / HTTP/1.1\r\n")
        loop.run_for(2 * HEADERS_TIMEOUT)
        assert not transport.closing
        loop.run_for(2 * HEADERS_TIMEOUT + 1)
        assert transport.written[0].startswith(b"HTTP/1.1 200 ")
        assert transport.closing

    def test_a_body_may_take_longer_and_be_larger(self, uvicorn: Uvicorn, loop: VirtualLoop) -> None:
        size = 2 * MAX_HEADERS_SIZE
        transport = uvicorn.connect()
        uvicorn.response_time = 10 * HEADERS_TIMEOUT
        uvicorn.receive(transport, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(4):
            loop.run_for(HEADERS_TIMEOUT / 2)
            uvicorn.receive(transport, bytes(size // 4))
        assert not transport.closing

    def test_a_websocket_may_be_silent(self, uvicorn: Uvicorn, loop: VirtualLoop) -> None:
        transport = uvicorn.connect()
        uvicorn.receive(transport, UPGRADE + b"\r\n")
        loop.run_for(1.5 * HEADERS_TIMEOUT)
        assert isinstance(transport.protocol, CableWebSocketProtocol)
        assert not transport.closing

    def test_time_in_the_queue_of_the_pacer_does_not_count(self, uvicorn: Uvicorn, loop: VirtualLoop) -> None:
        transports = [uvicorn.connect() for _ in range(2)]

        def receive() -> None:
            for transport in transports:
                transport.protocol.data_received(b"GET /")

        loop.run_for(HEADERS_TIMEOUT - 1)
        loop.call(receive)
        loop.iterate(5)
        loop.run_for(HEADERS_TIMEOUT - 1)
        assert [transport.closing for transport in transports] == [False, False]

    @pytest.mark.parametrize(
        ("header", "status"),
        [
            (b"Cookie: " + b"a=b; " * 2000, b"431"),
            (b"\r\n".join(b"x: x" for _ in range(200)), b"431"),
            (b"x\x7f: x", b"400"),
        ],
        ids=["a long line", "many lines", "an invalid name"],
    )
    def test_a_websocket_handshake_that_cannot_be_parsed_is_answered(
        self, loop: VirtualLoop, header: bytes, status: bytes
    ) -> None:
        """The package `websockets` refuses these headers. uvicorn's own protocol would not answer the handshake."""
        config = Config(lambda scope: None, log_config=None)
        config.load()
        transport = AsyncioTransport()

        def handshake() -> None:
            protocol: Any = CableWebSocketProtocol(config, ServerState(), {}, loop)
            protocol.connection_made(transport)
            protocol.data_received(UPGRADE + header + b"\r\n\r\n")

        loop.call(handshake)
        assert transport.closing
        assert b"".join(transport.written).startswith(b"HTTP/1.1 " + status)


# -- daphne ------------------------------------------------------------------------------------------------------------


class Factory:
    """Stands in for daphne's protocol factory.

    Its HTTP connections use the clock of the test, and time out after 60 s, Twisted's default.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.requests: list[Any] = []

    def buildProtocol(self, addr: Any) -> Any:  # noqa: N802 - Twisted's name
        channel = TimedHTTPChannel()
        channel.callLater = self.clock.callLater
        channel.timeOut = 60
        channel.requestFactory = self._request
        return channel

    def _request(self, *args: Any) -> Any:
        request = Request(*args)
        request.process = lambda: self.requests.append(request)  # type: ignore[method-assign]
        return request


class Daphne:
    """A connection to daphne without a socket."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.factory = Factory(self.clock)
        self.transport = cast(Any, StringTransport)()
        self.transport.protocol = PacedFactory(self.factory).buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)

    def receive(self, data: bytes) -> None:
        self.transport.protocol.dataReceived(data)

    @property
    def closing(self) -> bool:
        return bool(self.transport.disconnecting)


class TestDaphne:
    async def test_a_client_that_sends_nothing_is_disconnected(self) -> None:
        daphne = Daphne()
        daphne.clock.advance(HEADERS_TIMEOUT - 1)
        assert not daphne.closing
        daphne.clock.advance(2)
        assert daphne.closing

    async def test_slow_headers_do_not_extend_the_time(self) -> None:
        daphne = Daphne()
        for part in (b"GET / HTTP/1.1\r\n", *[b"x: x\r\n"] * int(HEADERS_TIMEOUT)):
            daphne.receive(part)
            daphne.clock.advance(1)
        assert daphne.closing

    async def test_slow_headers_of_a_later_request_have_the_timeout_of_twisted(self) -> None:
        daphne = Daphne()
        daphne.receive(REQUEST)
        (request,) = daphne.factory.requests
        daphne.clock.advance(1000)
        assert not daphne.closing, "the response may take long"
        request.finish()
        for part in (b"GET / HTTP/1.1\r\n", *[b"x: x\r\n"] * 6):
            daphne.receive(part)
            daphne.clock.advance(9)
        assert daphne.closing

    async def test_each_part_of_a_body_extends_the_time(self) -> None:
        daphne = Daphne()
        daphne.receive(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\n")
        for _ in range(99):
            daphne.clock.advance(HEADERS_TIMEOUT + 10)
            daphne.receive(b"x")
        assert not daphne.closing
