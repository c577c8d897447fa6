"""A server stops after SIGTERM and after Ctrl-C, even if a response does not end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidHandshake

from tests.support.client import BASE, Client, identify
from tests.support.event_reader import EventReader
from tests.support.redis import RedisServer
from tests.support.server import LOCAL, Kind, Server, ServerPool

#: The body of a request: a command of a client. The server begins to serve the request before its body arrives.
COMMAND = json.dumps({"command": "subscribe", "identifier": identify("StreamChannel", streams=["stop"])}).encode()
REQUEST = (
    f"POST /events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(COMMAND)}\r\nExpect: 100-continue\r\n\r\n"
).encode()

RESTART = {"type": "disconnect", "reason": "server_restart", "reconnect": True}

#: Runs `cable_serve` with short limits. The arguments are those of the command.
SHORT_LIMITS = """
import sys
import django
from django.conf import settings
from django.core.management import call_command
from reliable_cable.servers import drain

drain.DRAIN_LIMIT = drain.CLOSE_LIMIT = 0.1
drain.STOP_LIMIT = 0.5
django.setup()
settings.ASGI_APPLICATION = "tests.integration.test_stopping.hanging"
call_command("cable_serve", *sys.argv[1:])
"""

#: Runs uvicorn in the program's own event loop, and starts it again after Ctrl-C. The argument is the port.
STARTED_TWICE = """
import asyncio
import contextlib
import sys
import django
import uvicorn

django.setup()
loop = asyncio.new_event_loop()
for _ in range(2):
    config = uvicorn.Config("tests.integration.project.asgi:application", port=int(sys.argv[1]), lifespan="off")
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_until_complete(uvicorn.Server(config).serve())
"""


async def hanging(scope: Any, receive: Any, send: Any) -> None:
    """Serve the project, but send SIGTERM to this process and block a thread if the path is `/hang`."""
    from tests.integration.project.asgi import application

    if scope["path"] == "/hang":
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.to_thread(time.sleep, 600)
    await application(scope, receive, send)


class ShortLimits(Server):
    """A server with short limits. No WebSocket client connects to it before the request that hangs."""

    def _command(self) -> list[str]:
        return [sys.executable, "-c", SHORT_LIMITS, "--server", self.kind, f"127.0.0.1:{self.port}"]


class StartedTwice(Server):
    """A program that starts uvicorn again after Ctrl-C."""

    def _command(self) -> list[str]:
        return [sys.executable, "-c", STARTED_TWICE, str(self.port)]


@pytest.mark.parametrize("by_cable_serve", [False, True], ids=["uvicorn", "cable_serve"])
async def test_a_reader_that_arrives_before_the_signal_is_told_to_come_back(
    servers: ServerPool, by_cable_serve: bool
) -> None:
    """The first reader of the process is accepted only after uvicorn has begun to stop.

    uvicorn would wait for the end of the response, which has no end.
    """
    server = servers.make("uvicorn")
    server.by_cable_serve = by_cable_serve
    with server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(REQUEST)
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n"), "the server waits for the body"
        server.signal()
        await until_it_does_not_listen(server)
        writer.write(COMMAND)
        response = await asyncio.wait_for(reader.read(), 30)
        assert b'"reason":"server_restart","reconnect":true' in response
        writer.close()
        assert await server.stopped() in (0, -signal.SIGTERM)
        assert "did not stop" not in server.log


async def until_it_does_not_listen(server: Server) -> None:
    """Wait until the server accepts no connections, because it has begun to stop."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.01)


async def test_the_time_to_stop_is_limited_before_the_first_client_connects(servers: ServerPool, kind: Kind) -> None:
    template = servers.make(kind)
    with ShortLimits(kind, template.database.parent, template.database, shared=True) as server:
        async with httpx.AsyncClient(**LOCAL) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"http://127.0.0.1:{server.port}/hang")
        assert await server.stopped() == 0
        assert "The process did not stop in 0.5 seconds and is ended now." in server.log


@pytest.mark.parametrize("by_cable_serve", [False, True], ids=["own command", "cable_serve"])
async def test_ctrl_c_stops_a_server_with_open_connections(
    servers: ServerPool, kind: Kind, by_cable_serve: bool
) -> None:
    server = servers.make(kind, PUBLIC_STREAMS=True)
    server.by_cable_serve = by_cable_serve
    with server:
        async with Client(server.url, protocols=[BASE]) as client:
            await client.subscribe(identify("StreamChannel", streams=["stop"]))
            async with EventReader(f"http://127.0.0.1:{server.port}", "stream=stop") as reader:
                await reader.until_type("confirm_subscription")
                server.signal(signal.SIGINT)
                assert await server.stopped() in (0, -signal.SIGINT)
            if kind == "uvicorn":  # daphne drops its connections before they can be closed
                await client.expect(RESTART)
        assert "did not stop" not in server.log
        assert "Traceback" not in server.log


async def test_a_server_that_a_program_starts_again_in_the_same_event_loop_works(servers: ServerPool) -> None:
    template = servers.make("uvicorn")
    with StartedTwice("uvicorn", template.database.parent, template.database, shared=True) as server:
        async with Client(server.url, protocols=[BASE]) as client:
            server.signal(signal.SIGINT)
            await client.expect(RESTART)
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(30):
                while True:
                    with suppress(OSError, InvalidHandshake):
                        client = await stack.enter_async_context(Client(server.url, protocols=[BASE]))
                        break
            await client.subscribe(identify("StreamChannel", streams=["stop"]))
            server.signal()
            await client.expect(RESTART)
        assert await server.stopped() == -signal.SIGTERM


@pytest.mark.redis
async def test_disconnects_that_could_not_be_made_are_logged_when_the_process_ends(
    servers: ServerPool, kind: Kind, tmp_path: Path
) -> None:
    with RedisServer(tmp_path) as redis, servers.make(kind, REDIS_URL=redis.url) as server:
        await server.sign_in("ann")
        redis.kill()
        await server.call("disconnect_user", "ann")
        await server.terminate()
        assert "were not closed, because the process exits" in server.log
