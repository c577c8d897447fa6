"""The server stops on SIGTERM: pending subscribes are answered, everyone is sent away and comes back (12, 19)."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.exceptions import InvalidHandshake

from tests.conformance.conftest import SharedRedis
from tests.support.client import BASE, EXTENDED, Client, identify, unique
from tests.support.server import Kind, OtherProcess, Server, ServerPool


@pytest.mark.slow
async def test_a_graceful_stop(servers: ServerPool, kind: Kind) -> None:
    gate = unique("gate")
    async with AsyncExitStack() as stack:
        server = stack.enter_context(servers.make(kind))
        extended = [await stack.enter_async_context(Client(server.url)) for _ in range(10)]
        base = [await stack.enter_async_context(Client(server.url, protocols=[BASE])) for _ in range(10)]
        pending = await stack.enter_async_context(Client(server.url))
        for client in (*extended, *base):
            await client.subscribe(identify("EchoChannel"))
        await pending.send("subscribe", identify("GatedChannel", gate=gate))
        await server.call("wait_at_gate", gate, 1)
        server.signal()
        # The process has heard of it when it refuses new connections; it still answers HTTP.
        await refuses(server)
        await server.call("open_gate", gate)
        await pending.expect({"type": "confirm_subscription"})

        ended = await asyncio.gather(*(end(client) for client in (pending, *extended, *base)))
        assert max(ended) - min(ended) > 0.3, "clients are spread, so that not all return at once"
        for client in (*extended, pending):
            assert not [frame for frame in client.log if frame.get("type") == "disconnect"], "it keeps its session"
        for client in base:
            farewell = {"type": "disconnect", "reason": "server_restart", "reconnect": True}
            assert client.log[-1] == farewell
        assert await server.stopped() in (0, -15)


async def refuses(server: Server) -> None:
    """Wait until the server lets no new client in."""
    async with asyncio.timeout(10):
        while True:
            try:
                async with Client(server.url):
                    pass
            except (OSError, InvalidHandshake, AssertionError):
                return


async def end(client: Client) -> float:
    """Wait until a client was sent away, by a normal closure; return when."""
    assert await client.closed() == 1000
    return time.monotonic()


@pytest.mark.slow
async def test_nothing_is_lost_across_a_graceful_stop(servers: ServerPool, kind: Kind) -> None:
    stream = unique("large:")
    identifier = identify("StreamChannel", streams=[stream])
    with servers.make(kind) as server, OtherProcess(server) as other:
        async with Client(server.url) as former:
            await former.subscribe(identifier)
            writing = asyncio.create_task(other.call("count_up", stream, 1, 300))
            first = await former.expect({"message": {"n": 1}})
            server.signal()
            await former.closed()
        await server.stopped()
        await server.restart()
        await writing
        seen = [frame["message"]["n"] for frame in former.log if "stream_id" in frame]
        async with Client(server.url, sid=former.sid) as client:
            last = {"epoch": first["epoch"], "offset": seen[-1]}
            assert client.welcome["restored_ids"] == [identifier]
            await client.send("history", identifier, history={"streams": {stream: last}})
            await client.until({"type": "confirm_history"})
            seen += [frame["message"]["n"] for frame in client.log if "stream_id" in frame]
        assert seen == list(range(1, 301))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [EXTENDED, BASE])
async def test_unsubscribed_runs_for_everyone_before_the_process_ends(
    servers: ServerPool, kind: Kind, protocol: str
) -> None:
    audit = unique("audit")
    with servers.make(kind) as server:
        async with AsyncExitStack() as stack:
            for number in range(5):
                client = await stack.enter_async_context(Client(server.url, protocols=[protocol]))
                await client.subscribe(identify("AuditedChannel", audit=audit, id=number))
            await server.terminate()
        await server.restart()
        assert (await server.call("position", audit))["offset"] == 10


@pytest.mark.slow
async def test_without_clients_the_process_ends_at_once(servers: ServerPool, kind: Kind) -> None:
    with servers.make(kind) as server:
        async with Client(server.url):
            pass
        started = time.monotonic()
        assert await server.terminate() in (0, -15)
        assert time.monotonic() - started < 5


class CarefulServer(Server):
    """A server in Python's development mode, which tells of whatever it left open."""

    def _command(self) -> list[str]:
        python, _, *words = super()._command()
        return [python, "-X", "dev", "-m", "tests.support.ending", *words]


async def test_nothing_is_left_open(
    servers: ServerPool, kind: Kind, engine: str, shared_redis: SharedRedis, tmp_path: Path
) -> None:
    options = shared_redis() if engine == "redis" else {}
    async with AsyncExitStack() as stack:
        template = servers.make(kind).database
        server = stack.enter_context(CarefulServer(kind, tmp_path, template, options))
        clients = [await stack.enter_async_context(Client(server.url)) for _ in range(3)]
        for client in clients:
            room = await client.subscribe(identify("RoomChannel", room="room"))
            await client.send("join", room, presence={"id": client.sid})
            await client.expect({"type": "presence", "message": {"type": "join", "id": client.sid}})
        await server.call("broadcast", "room", {"n": 1})
        await clients[0].until({"message": {"n": 1}})
        assert await server.terminate() == 0
        log = server.log
        assert "All was let go." in log
        for complaint in ("ResourceWarning", "was destroyed", "never awaited", "Traceback", "could not be"):
            assert complaint not in log
