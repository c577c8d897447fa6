"""The Redis client, where connections break in ways of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.redis.client import Call, RedisClient, RedisUnavailable
from tests.stores.conftest import until
from tests.support.faults import FaultProxy
from tests.support.redis import RedisServer

pytestmark = pytest.mark.redis


@pytest.fixture
def client(redis_url: str) -> Iterator[RedisClient]:
    client = RedisClient(CableSettings(redis_url=redis_url))
    yield client
    client.close()


@pytest.mark.parametrize("connected", [True, False])
async def test_a_connection_that_the_event_loop_has_closed_is_a_broken_one(
    client: RedisClient, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    # With uvloop, sending on it raises what is neither an OSError nor redis-py's; while it is opened, too.
    if connected:
        await client.arun(Call("PING"))
    write = asyncio.StreamWriter.writelines
    tries = 0

    def fail_twice(writer: asyncio.StreamWriter, lines: Iterable[bytes]) -> None:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise RuntimeError("unable to perform operation; the handler is closed")
        write(writer, lines)

    monkeypatch.setattr(asyncio.StreamWriter, "writelines", fail_twice)
    with pytest.raises(RedisUnavailable):
        await client.arun(Call("PING"), again=True)
    assert tries == 2
    assert await client.arun(Call("PING")) == [b"PONG"]
    await client.aclose()


async def test_a_connection_whose_opening_was_cancelled_gives_no_wrong_answers(redis_server: RedisServer) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        client = RedisClient(CableSettings(redis_url=f"redis://127.0.0.1:{proxy.port}/0"))
        proxy.stall()
        opening = asyncio.ensure_future(client.arun(Call("PING")))
        await until(lambda: proxy.links)
        opening.cancel()
        await asyncio.wait([opening])
        proxy.resume()
        assert await client.arun(Call("ECHO", (), ("hello",))) == [b"hello"]
        await client.aclose()


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
