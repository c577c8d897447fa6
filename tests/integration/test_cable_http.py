"""Tests of `CableHTTP` on real servers: health checks, and clients that send too much or disconnect."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from tests.integration.test_http import key, message
from tests.support.client import Client, identify, unique
from tests.support.redis import RedisServer
from tests.support.server import LOCAL, Kind, Server, ServerPool

#: How long, in seconds, to wait until the health of a server changes.
PATIENCE = 30.0


def health_client(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", **LOCAL)


async def until_status(http: httpx.AsyncClient, status: int) -> httpx.Response:
    """Ask for the health of a server until the response has this status. Return the response."""
    async with asyncio.timeout(PATIENCE):
        while (response := await http.get("/health")).status_code != status:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.05)
    return response


async def test_health_checks_need_no_key(server: Server) -> None:
    async with health_client(server) as http:
        response = await http.get("/health")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        head = await http.head("/health")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(response.content))
        refused = await http.post("/health", json={})
        assert (refused.status_code, refused.headers["Allow"], refused.content) == (405, "GET, HEAD", b"")


async def test_a_mounted_application_is_reached_without_its_prefix(servers: ServerPool, tmp_path: Path) -> None:
    template = servers.make("uvicorn").database

    class Mounted(Server):
        def _command(self) -> list[str]:
            return [*super()._command(), "--root-path", "/app"]

    with Mounted("uvicorn", tmp_path, template) as server:
        async with health_client(server) as http:
            # uvicorn puts the prefix before the path of each request, for proxies that remove it.
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/healthy")).status_code == 404


@pytest.mark.redis
async def test_a_server_is_not_healthy_while_redis_is_stopped_or_hangs(
    servers: ServerPool, kind: Kind, tmp_path: Path
) -> None:
    with RedisServer(tmp_path) as redis, servers.make(kind, REDIS_URL=redis.url) as server:
        async with health_client(server) as http:
            await until_status(http, 200)
            redis.kill()
            problem = await until_status(http, 503)
            assert problem.json() == {"error": "The stream store did not answer within 1.5 s."}
            answers = await asyncio.gather(*(http.get("/health") for _ in range(50)))
            assert {answer.status_code for answer in answers} == {503}
            redis.start()
            await until_status(http, 200)
            redis.suspend()
            try:
                await until_status(http, 503)
            finally:
                redis.resume()
            await until_status(http, 200)
        assert "Traceback" not in server.log


async def test_a_server_that_drains_is_not_healthy(servers: ServerPool, kind: Kind) -> None:
    gate = unique("gate")
    with servers.make(kind) as server:
        async with health_client(server) as http, Client(server.url) as client:
            # The drain waits for this handler for a limited time.
            await client.send("subscribe", identify("AsyncGatedChannel", gate=gate))
            await server.call("wait_at_gate", gate, 1)
            assert (await http.get("/health")).status_code == 200
            server.signal()
            problem = await until_status(http, 503)
            assert problem.json() == {"error": "This server is about to stop."}
            await server.call("open_gate", gate)
            assert await server.stopped() in (0, -15)


async def test_a_client_that_disconnects_while_it_sends_costs_nothing(servers: ServerPool, kind: Kind) -> None:
    stream = unique("http/")
    body = json.dumps(message(stream, {"n": 1})).encode()
    head = (
        f"POST /direct/_broadcast HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Authorization: Bearer {key('broadcast-cable')}\r\n\r\n"
    )
    with servers.make(kind) as server:
        for count in (0, 10, len(body) - 1):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head.encode() + body[:count])
            await writer.drain()
            writer.transport.abort()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode() + body)
        assert b" 201 " in await reader.readline()
        writer.close()
        assert (await server.call("position", stream))["offset"] == 1
        assert "Traceback" not in server.log
        assert "ERROR" not in server.log


async def test_an_endless_body_is_answered_before_its_end(servers: ServerPool) -> None:
    # Only uvicorn is tested, because daphne receives the whole body before it calls the application.
    server = servers.get("uvicorn")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /direct/_broadcast HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        + f"Authorization: Bearer {key('broadcast-cable')}\r\n\r\n".encode()
    )

    async def send() -> None:
        while True:
            writer.write(b"%x\r\n%s\r\n" % (100_000, b" " * 100_000))
            await writer.drain()

    sender = asyncio.create_task(send())
    assert b" 413 " in await asyncio.wait_for(reader.readline(), PATIENCE)
    sender.cancel()
    await asyncio.wait([sender])
    writer.transport.abort()
