"""A pool of Redis connections that grew in a burst of calls shrinks again."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.stores.redis.client import Call, RedisClient
from tests.stores.conftest import until, wait_until
from tests.support.redis import RedisServer

LIST = "a list that is empty before each burst"
#: A call that keeps its connection in use until `end_burst`.
WAIT = Call("BLPOP", [LIST], [60])


@pytest.fixture
def client(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisClient:
    monkeypatch.setattr("reliable_cable.stores.redis.idle.MAX_IDLE_TIME", 2.0)
    options = {"client_name": "burst", "socket_timeout": 60}
    return RedisClient(CableSettings(redis_url=redis_server.url, redis_options=options))


def connections(server: RedisServer) -> int:
    return str(server.cli("CLIENT", "LIST")).count("name=burst")


def is_full(server: RedisServer) -> bool:
    """Return whether ten calls wait at the same time, so that each of them has a connection of its own."""
    return bool(server.cli("INFO", "clients")["blocked_clients"] == 10)


def end_burst(server: RedisServer) -> None:
    """Let the ten calls return."""
    server.cli("RPUSH", LIST, *range(10))


async def test_connections_of_an_event_loop(client: RedisClient, redis_server: RedisServer) -> None:
    async def burst() -> None:
        calls = [asyncio.create_task(client.arun(WAIT)) for _ in range(10)]
        await until(lambda: is_full(redis_server))
        end_burst(redis_server)
        await asyncio.gather(*calls)

    async with asyncio.timeout(60):
        await burst()
        assert connections(redis_server) == 10
        while connections(redis_server) > 1:
            await client.arun(Call("PING"))
            await asyncio.sleep(0.02)
        await burst()
        assert connections(redis_server) == 10
    await client.aclose()


def test_connections_of_threads(client: RedisClient, redis_server: RedisServer) -> None:
    def burst() -> None:
        calls = [pool.submit(client.run, WAIT) for _ in range(10)]
        wait_until(lambda: is_full(redis_server))
        end_burst(redis_server)
        for each in calls:
            each.result(30)

    def has_shrunk() -> bool:
        client.run(Call("PING"))
        return connections(redis_server) <= 1

    with ThreadPoolExecutor(10) as pool:
        burst()
        assert connections(redis_server) == 10
        wait_until(has_shrunk)
        burst()
        assert connections(redis_server) == 10
    client.close()
