"""The server stops on SIGTERM: it answers pending subscribes and closes all connections (see Protocol: Disconnects)."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.exceptions import InvalidHandshake

from reliable_cable.servers.drain import STOP_LIMIT
from tests.conformance.conftest import SharedRedis
from tests.support.client import BASE, EXTENDED, Client, identify, unique
from tests.support.server import Kind, OtherProcess, Server, ServerPool

#: How many seconds a busy machine may be late.
SLACK = 5.0


@pytest.mark.slow
async def test_a_graceful_stop_answers_pending_subscribes_and_spreads_the_closing_of_connections(
    servers: ServerPool, kind: Kind
) -> None:
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
        # Once the process refuses new WebSocket connections, it has begun to handle the signal. It still answers other
        # HTTP requests, such as those of `server.call`.
        await wait_until_refused(server)
        await server.call("open_gate", gate)
        await pending.expect({"type": "confirm_subscription"})

        ended = await asyncio.gather(*(wait_until_closed(client) for client in (pending, *extended, *base)))
        assert max(ended) - min(ended) > 0.3, (
            "connections must be closed over some time, so that not all clients reconnect at once"
        )
        for client in (*extended, pending):
            assert not [frame for frame in client.log if frame.get("type") == "disconnect"], (
                "the client would forget its session"
            )
        for client in base:
            restart = {"type": "disconnect", "reason": "server_restart", "reconnect": True}
            assert client.log[-1] == restart
        assert await server.stopped() in (0, -15)


async def wait_until_refused(server: Server) -> None:
    """Wait until the server refuses new connections."""
    async with asyncio.timeout(10):
        while True:
            try:
                async with Client(server.url):
                    pass
            except (OSError, InvalidHandshake, AssertionError):
                return


async def wait_until_closed(client: Client) -> float:
    """Wait until the server has closed a connection with the normal code, and return the time."""
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
async def test_unsubscribed_runs_for_all_subscriptions_before_the_process_ends(
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
        # The end of Python itself may take some seconds on a busy machine. A server that reaches a limit logs it.
        assert time.monotonic() - started < STOP_LIMIT - 1
        for problem in ("did not stop", "could not be"):
            assert problem not in server.log


@pytest.mark.slow
async def test_handlers_that_hang_do_not_keep_the_process_from_ending(servers: ServerPool, kind: Kind) -> None:
    gate = unique("gate")
    async with AsyncExitStack() as stack:
        server = stack.enter_context(servers.make(kind))
        clients = [await stack.enter_async_context(Client(server.url)) for _ in range(3)]
        for client, channel in zip(clients, ("GatedChannel", "AsyncGatedChannel"), strict=False):
            await client.send("subscribe", identify(channel, gate=gate))
        await server.call("wait_at_gate", gate, 2)
        started = time.monotonic()
        server.signal()
        assert [await client.closed() for client in clients] == [1000] * 3, "the clients must reconnect elsewhere"
        assert await server.stopped() in (0, -15)
        assert time.monotonic() - started < STOP_LIMIT + SLACK
        assert re.search("These threads are still running: .*MainThread.*cable-handler", server.log)


class CarefulServer(Server):
    """A server in Python's development mode, which reports resources that were not closed."""

    def _command(self) -> list[str]:
        python, _, *arguments = super()._command()
        return [python, "-X", "dev", "-m", "tests.support.ending", *arguments]


async def test_the_server_closes_all_resources(
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
        assert "The server has ended." in log
        for problem in ("ResourceWarning", "was destroyed", "never awaited", "Traceback", "could not be"):
            assert problem not in log
