"""`RATE_LIMITS` with real servers and clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from reliable_cable.connection.command_limits import WAITING_TIME
from tests.integration.test_npm import run
from tests.support.client import Client, identify
from tests.support.fixtures import KINDS
from tests.support.redis import RedisPool, find_binaries
from tests.support.server import Kind, Server, ServerPool

COMMANDS, WHISPERS = 50, 10
ECHO = identify("EchoChannel")


@pytest.fixture
def limited(servers: ServerPool, kind: Kind) -> Server:
    """A server that limits commands and whispers."""
    return servers.get(
        kind,
        RATE_LIMITS={"command": f"{COMMANDS}/s", "whisper": f"{WHISPERS}/s"},
        PUBLIC_STREAMS=True,
        MAX_SUBSCRIPTIONS=3,
    )


async def test_a_burst_of_commands_is_handled_in_order_only_later(limited: Server) -> None:
    count, other = 4 * COMMANDS, identify("EchoChannel", other=True)
    async with Client(limited.url) as client:
        await client.subscribe(ECHO)
        began = time.monotonic()
        for number in range(count):
            await client.perform(ECHO, "echo", number=number)
        # A client repeats a subscribe that has not been answered for some time.
        for _ in range(2):
            await client.send("subscribe", other)
        numbers = [message["echo"]["number"] for message in await client.messages(ECHO, count)]
        assert numbers == list(range(count))
        assert time.monotonic() - began > (count - COMMANDS) / COMMANDS - 0.5
        await client.expect({"type": "confirm_subscription", "identifier": other})
        await client.perform(other, "echo")
        await client.expect({"identifier": other, "message": {}})
        assert [frame for frame in client.log if frame.get("type") == "disconnect"] == []


async def test_whispers_have_a_limit_of_their_own(limited: Server) -> None:
    count, stream = 3 * WHISPERS, identify("$pubsub", stream_name="limited whispers")
    async with Client(limited.url) as sender, Client(limited.url) as receiver:
        for client in (sender, receiver):
            await client.subscribe(stream)
        began = time.monotonic()
        for number in range(1, count + 1):
            await sender.send("whisper", stream, data=number)
        assert await receiver.messages(stream, count) == list(range(1, count + 1))
        assert time.monotonic() - began > (count - WHISPERS) / WHISPERS - 0.5


async def test_a_client_that_sends_too_much_for_too_long_has_to_come_back(servers: ServerPool) -> None:
    """Both servers are tested at the same time, because this takes as long as commands may wait."""

    async def flood(kind: Kind) -> None:
        server = servers.get(kind, RATE_LIMITS={"command": "5/s"}, MAX_SUBSCRIPTIONS=3)
        late = identify("EchoChannel", late=True)
        async with Client(server.url) as client:
            await client.subscribe(ECHO)
            began, number, subscribed = time.monotonic(), 0, False
            with suppress(ConnectionClosed):
                while client.alive:
                    await client.perform(ECHO, "echo", number=(number := number + 1))
                    await asyncio.sleep(0.05)
                    if not subscribed and time.monotonic() - began > WAITING_TIME - 3:
                        subscribed = True
                        await client.send("subscribe", late)
                    assert time.monotonic() - began < WAITING_TIME + 30
            await client.closed()
            assert time.monotonic() - began > WAITING_TIME
            assert client.log[-1] == {"type": "disconnect", "reason": "rate_limited", "reconnect": True}
            # Every command that the server has read was handled, in order.
            echoes = [frame["message"]["echo"]["number"] for frame in client.log if "message" in frame]
            assert echoes == list(range(1, len(echoes) + 1))
            assert {"type": "confirm_subscription", "identifier": late} in client.log
        async with Client(server.url) as returned:
            await returned.subscribe(ECHO)

    await asyncio.gather(*map(flood, KINDS))


# -- connects ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def connected(*servers: Server, count: int, **options: str) -> AsyncIterator[list[bool]]:
    """Connect `count` times, to the servers in turn. Yield a list that says whether each attempt was accepted."""
    accepted = []
    async with AsyncExitStack() as stack:
        for number in range(count):
            try:
                headers = {name: value.format(number) for name, value in options.items()}
                await stack.enter_async_context(Client(servers[number % len(servers)].url, headers=headers))
                accepted.append(True)
            except InvalidStatus:
                accepted.append(False)
        yield accepted


@pytest.mark.redis
async def test_connects_of_one_address_are_limited_across_processes(
    servers: ServerPool, redis_pool: RedisPool, key_prefix: str
) -> None:
    url = redis_pool.get(find_binaries()[0].name).url
    options: dict[str, Any] = {"RATE_LIMITS": {"connect": "5/h"}, "REDIS_URL": url, "KEY_PREFIX": key_prefix}
    with servers.make("uvicorn", **options) as one, servers.make("daphne", **options) as other:
        async with connected(one, other, count=8) as accepted:
            assert accepted == [True] * 5 + [False] * 3


@pytest.fixture(params=[("uvicorn", False), ("daphne", False), ("daphne", True)], ids=str)
def behind_proxy(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[tuple[Server, bool]]:
    """A server, and whether it trusts the header `X-Forwarded-For` of its clients."""
    kind, trusting = request.param
    server = servers.make(kind, RATE_LIMITS={"connect": "3/h"})
    server.by_cable_serve = True
    # By default, uvicorn trusts clients on its own host, such as the clients of these tests.
    server.environment["FORWARDED_ALLOW_IPS"] = "*" if trusting else ("192.0.2.1" if kind == "uvicorn" else "")
    with ExitStack() as stack:
        yield stack.enter_context(server), trusting


async def test_only_a_header_of_a_trusted_proxy_names_the_client(behind_proxy: tuple[Server, bool]) -> None:
    server, trusting = behind_proxy
    forwarded = {"X-Forwarded-For": "192.0.2.{}"}
    async with connected(server, count=5, **forwarded) as accepted:
        assert accepted == ([True] * 5 if trusting else [True] * 3 + [False] * 2)
    if trusting:
        network = {"X-Forwarded-For": "2001:db8::{}"}
        async with connected(server, count=4, **network) as accepted:
            assert accepted == [True] * 3 + [False]


@pytest.mark.node
async def test_the_npm_clients_come_back(servers: ServerPool) -> None:
    with servers.make("uvicorn", RATE_LIMITS={"connect": "3/s"}) as server:
        await run(server, "limits.mjs", 2)
        assert "has connected more than 3 times in 1 s" in server.log
