"""A pool of Redis connections that grew in a burst of calls shrinks again."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.stores.redis.client import Call, RedisClient
from tests.support.redis import RedisServer

#: A call that keeps its connection in use for 0.2 seconds.
WAIT = Call("BLPOP", ["a list that does not exist"], [0.2])


@pytest.fixture
def client(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisClient:
    monkeypatch.setattr("reliable_cable.stores.redis.idle.MAX_IDLE_TIME", 2.0)
    return RedisClient(CableSettings(redis_url=redis_server.url, redis_options={"client_name": "burst"}))


def connections(server: RedisServer) -> int:
    return str(server.cli("CLIENT", "LIST")).count("name=burst")


async def test_connections_of_an_event_loop(client: RedisClient, redis_server: RedisServer) -> None:
    async with asyncio.timeout(30):
        await asyncio.gather(*(client.arun(WAIT) for _ in range(10)))
        assert connections(redis_server) == 10
        while connections(redis_server) > 1:
            await client.arun(Call("PING"))
            await asyncio.sleep(0.02)
        await asyncio.gather(*(client.arun(WAIT) for _ in range(10)))
        assert connections(redis_server) == 10
    await client.aclose()


def test_connections_of_threads(client: RedisClient, redis_server: RedisServer) -> None:
    with ThreadPoolExecutor(10) as pool:
        for each in [pool.submit(client.run, WAIT) for _ in range(10)]:
            each.result(30)
        assert connections(redis_server) == 10
        deadline = time.monotonic() + 30
        while connections(redis_server) > 1:
            assert time.monotonic() < deadline
            client.run(Call("PING"))
            time.sleep(0.02)
        for each in [pool.submit(client.run, WAIT) for _ in range(10)]:
            each.result(30)
        assert connections(redis_server) == 10
    client.close()
