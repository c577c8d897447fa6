"""Handshakes that are too large or too slow, on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from reliable_cable.servers.limits import HEADERS_TIMEOUT
from tests.support.client import Client
from tests.support.server import PROJECT, Kind, Server, ServerPool

HANDSHAKE = (
    b"GET /cable HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: actioncable-v1-ext-json\r\n"
)


class ReadmeUvicorn(Server):
    """uvicorn, started by the command in README.md."""

    def _command(self) -> list[str]:
        protocol = "reliable_cable.servers.uvicorn:CableWebSocketProtocol"
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "uvicorn", "--ws", protocol, *address, f"{PROJECT}.asgi:application"]


@pytest.fixture
def cable_serve(servers: ServerPool, kind: Kind) -> Server:
    """A server that is not started. `cable_serve` will start it, instead of its own command."""
    server = servers.make(kind)
    server.by_cable_serve = True
    return server


@contextlib.asynccontextmanager
async def connect(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def response_to(server: Server, request: bytes) -> bytes:
    """Send a request, and return everything that the server sends until it closes the connection."""
    async with asyncio.timeout(30), connect(server) as (reader, writer):
        writer.write(request)
        return await reader.read()


@pytest.mark.parametrize("command", ["README", "cable_serve", "cable_serve --compress"])
async def test_uvicorn_refuses_a_handshake_with_many_cookies(servers: ServerPool, tmp_path: Path, command: str) -> None:
    if command == "README":
        server: Server = ReadmeUvicorn("uvicorn", tmp_path, servers.make("uvicorn").database)
    else:
        server = servers.make("uvicorn" if command == "cable_serve" else "compressing")
        server.by_cable_serve = True
    with server:
        response = await response_to(server, HANDSHAKE + b"Cookie: " + b"a=b; " * 2000 + b"\r\n\r\n")
        assert response.startswith(b"HTTP/1.1 431 ")
        async with Client(server.url, cookie="a=b; " * 1000):
            pass


async def test_the_headers_of_a_request_use_bounded_memory(cable_serve: Server) -> None:
    with cable_serve as server:
        async with Client(server.url):
            pass
        before = server.rss
        largest = 64 * 2**20  # more than the buffers of the sockets can hold
        async with connect(server) as (reader, writer):
            writer.write(HANDSHAKE)
            sent = 0
            with contextlib.suppress(ConnectionError):  # the server closes the connection while the client is writing
                while sent < largest and not reader.at_eof():
                    writer.write(b"x: " + b"x" * 8000 + b"\r\n")
                    sent += 8005
                    await writer.drain()
                    await asyncio.sleep(0)
            assert sent < largest, "the server must close the connection"
        assert server.rss - before < 8 * 2**20
        async with Client(server.url):
            pass


@pytest.mark.slow
async def test_the_headers_of_a_request_must_arrive_in_limited_time(cable_serve: Server) -> None:
    async def send_slowly(server: Server) -> float:
        started = time.monotonic()
        async with connect(server) as (reader, writer):
            writer.write(HANDSHAKE)
            ended = asyncio.create_task(reader.read())
            with contextlib.suppress(ConnectionError):
                while not ended.done() and time.monotonic() - started < 3 * HEADERS_TIMEOUT:
                    writer.write(b"x")
                    await asyncio.wait([ended], timeout=0.5)
            assert ended.done(), "the server must close the connection"
        return time.monotonic() - started

    with cable_serve as server:
        async with Client(server.url) as client:
            assert await send_slowly(server) > HEADERS_TIMEOUT - 1
            await client.ping(1)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", HANDSHAKE], ids=["silent", "incomplete headers"])
async def test_half_open_handshakes_cost_little_and_end(cable_serve: Server, sent: bytes) -> None:
    async def wait_for_the_end(server: Server) -> None:
        async with connect(server) as (reader, writer):
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                await reader.read()

    with cable_serve as server:
        async with Client(server.url) as client, asyncio.timeout(3 * HEADERS_TIMEOUT):
            before = server.rss
            clients = [asyncio.create_task(wait_for_the_end(server)) for _ in range(500)]
            while not any(each.done() for each in clients):
                await client.ping(1)
                assert server.rss - before < 20_000_000
                await asyncio.sleep(0.5)
            await asyncio.gather(*clients)
