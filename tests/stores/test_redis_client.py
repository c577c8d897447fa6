"""The Redis client's connections on an event loop that ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.redis.client import Call, RedisClient
from tests.stores.conftest import until
from tests.support.redis import RedisServer

pytestmark = pytest.mark.redis


async def test_a_client_that_is_closed_lets_calls_end_and_keeps_no_connection(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        client = RedisClient(CableSettings(redis_url=server.url))
        await asyncio.gather(*[client.arun(Call("PING")) for _ in range(3)])
        server.pause(0.3)
        calls = [asyncio.create_task(client.arun(Call("PING"))) for _ in range(2)]
        await asyncio.sleep(0)
        await client.aclose()
        assert not any(call.done() for call in calls)
        assert [await call for call in calls] == [[b"PONG"]] * 2
        await until(lambda: connections(server) == 1)


def connections(server: RedisServer) -> int:
    """How many connections the server has, with the one that asks."""
    return int(server.cli("INFO", "clients")["connected_clients"])
