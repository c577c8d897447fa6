"""Handshakes of pages of other sites, which browsers send with the user's cookies."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.client import EXTENDED, PATIENCE
from tests.support.server import Server

SWITCHING_PROTOCOLS = 101
BAD_REQUEST = 400
FORBIDDEN = 403


async def status(server: Server, *origins: bytes, cookie: str = "") -> int:
    """Send a handshake with these `Origin` headers, and return the status of the response."""
    lines = [
        b"GET /cable HTTP/1.1",
        b"Host: 127.0.0.1:%d" % server.port,
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        b"Sec-WebSocket-Protocol: " + EXTENDED.encode(),
        *(b"Origin: " + origin for origin in origins),
        *([b"Cookie: " + cookie.encode()] if cookie else []),
    ]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(b"\r\n".join([*lines, b"", b""]))
        async with asyncio.timeout(PATIENCE):
            return int((await reader.readline()).split()[1])
    finally:
        writer.close()


async def test_a_page_of_another_site_is_refused_although_it_has_the_cookie_of_a_user(server: Server) -> None:
    cookie = await server.sign_in("ann")
    own = b"http://127.0.0.1:%d" % server.port
    assert await status(server, own, cookie=cookie) == SWITCHING_PROTOCOLS
    assert await status(server, b"http://evil.com", cookie=cookie) == FORBIDDEN


async def test_a_client_without_an_origin_is_accepted(server: Server) -> None:
    assert await status(server) == SWITCHING_PROTOCOLS


@pytest.mark.parametrize(
    "origin",
    [
        b"null",
        b"http://127.0.0.1.evil.com",
        b"http://127.0.0.1@evil.com",
        b"HTTP://EVIL.COM",
        b"http://xn--bcher-kva.example",
    ],
)
async def test_origins_that_are_not_the_sites_own_are_refused(server: Server, origin: bytes) -> None:
    assert await status(server, origin) == FORBIDDEN


@pytest.mark.parametrize(
    "origin",
    [
        b"ws://[::1",
        b"http://127.0.0.1:port",
        b"http://",
        b"http://b\xfccher.example",
        "http://bücher.example".encode(),
    ],
)
async def test_a_broken_origin_is_refused_without_a_traceback(server: Server, origin: bytes) -> None:
    before = len(server.log)
    # daphne itself answers some of them with 400.
    assert await status(server, origin) in ({BAD_REQUEST, FORBIDDEN} if server.kind == "daphne" else {FORBIDDEN})
    assert await status(server) == SWITCHING_PROTOCOLS
    assert "Traceback" not in server.log[before:]


async def test_a_handshake_with_two_origins_is_refused(server: Server) -> None:
    # uvicorn itself answers with 400.
    expected = BAD_REQUEST if server.kind == "uvicorn" else FORBIDDEN
    assert await status(server, b"http://127.0.0.1", b"http://127.0.0.1") == expected
