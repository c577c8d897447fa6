"""Handshakes of pages of other sites, which browsers send with the user's cookies."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.client import EXTENDED, PATIENCE
from tests.support.server import Server

SWITCHING_PROTOCOLS = 101
BAD_REQUEST = 400
FORBIDDEN = 403


async def status(
    server: Server, *origins: bytes, cookie: str = "", target: bytes = b"/cable", header: bytes = b""
) -> int:
    """Send a handshake with these `Origin` headers, and return the status of the response.

    Args:
        server: the server.
        origins: the values of the headers `Origin`.
        cookie: the header `Cookie`.
        target: the path and the query.
        header: the line of another header.
    """
    lines = [
        b"GET " + target + b" HTTP/1.1",
        b"Host: 127.0.0.1:%d" % server.port,
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        b"Sec-WebSocket-Protocol: " + EXTENDED.encode(),
        *(b"Origin: " + origin for origin in origins),
        *([b"Cookie: " + cookie.encode()] if cookie else []),
        *([header] if header else []),
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
    # daphne itself answers some of these origins with 400.
    assert await status(server, origin) in ({BAD_REQUEST, FORBIDDEN} if server.kind == "daphne" else {FORBIDDEN})
    assert await status(server) == SWITCHING_PROTOCOLS
    assert "Traceback" not in server.log[before:]


async def test_a_handshake_with_two_origins_is_refused(server: Server) -> None:
    # uvicorn itself answers such a handshake with 400.
    expected = BAD_REQUEST if server.kind == "uvicorn" else FORBIDDEN
    assert await status(server, b"http://127.0.0.1", b"http://127.0.0.1") == expected


@pytest.mark.parametrize(
    ("target", "header"),
    [
        (b"/cable?\xff", b""),
        (b"/cable?sid=%ff", b""),
        (b"/cable", b"Content-Type: text/plain; charset*=no-such''x"),
        (b"/cable", b"Content-Length: x"),
        (b"/cable", b"X-Forwarded-Host: \xff"),
    ],
)
async def test_what_else_a_handshake_has_causes_no_traceback(server: Server, target: bytes, header: bytes) -> None:
    before = len(server.log)
    own = b"http://127.0.0.1:%d" % server.port
    # The servers themselves answer some of these handshakes with 400, or refuse them.
    answers = {BAD_REQUEST, FORBIDDEN, SWITCHING_PROTOCOLS}
    assert await status(server, own, target=target, header=header) in answers
    assert await status(server, b"http://evil.com", target=target, header=header) in {BAD_REQUEST, FORBIDDEN}
    assert await status(server) == SWITCHING_PROTOCOLS
    assert "Traceback" not in server.log[before:]
