"""A client that reads nothing and sends all it can costs little memory, storage and log, and delays others little."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from contextlib import closing

import pytest

from tests.support.client import Client
from tests.support.redis import RedisPool, RedisServer, find_binaries
from tests.support.server import Kind, Server, ServerPool

from .adversary import ATTACKS, Attacker

#: How long, in seconds, each attack lasts.
SECONDS = 2.0
#: The bounds for one attacker: bytes of memory, of what is stored, and of log.
MEMORY, STORED, LOG = 16 * 2**20, 2 * 2**20, 100_000
#: The bound for the median delay of another client's ping in seconds.
DELAY = 0.1
#: How long, in seconds, the server may take to answer another client's ping on a busy machine.
PATIENCE = 30.0


@pytest.fixture(params=["database", pytest.param("redis", marks=pytest.mark.redis)])
def engine(request: pytest.FixtureRequest) -> str:
    """The engine of the attacked server."""
    return str(request.param)


@pytest.fixture
def redis(engine: str, request: pytest.FixtureRequest) -> RedisServer | None:
    """The Redis of the engine; None: the engine is the database."""
    if engine == "database":
        return None
    pool: RedisPool = request.getfixturevalue("redis_pool")
    return pool.get(find_binaries()[0].name)


@pytest.fixture
def attacked(servers: ServerPool, kind: Kind, redis: RedisServer | None) -> Server:
    """A server of each kind, on each engine."""
    return servers.get(kind) if redis is None else servers.get(kind, REDIS_URL=redis.url, KEY_PREFIX="attacked")


def bytes_stored(server: Server, redis: RedisServer | None) -> int:
    """Return how many bytes the engine of a server has stored."""
    if redis is not None:
        return sum(redis.cli("MEMORY", "USAGE", key) or 0 for key in redis.cli("KEYS", "attacked:*"))
    with closing(sqlite3.connect(server.database)) as database:
        size, pages, free = (
            database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
    return int(size * (pages - free))


async def delay_of_a_ping(bystander: Client) -> float:
    """Return how long, in seconds, the server takes to answer a ping."""
    began = time.monotonic()
    await bystander.send_raw('{"command":"ping"}')
    await bystander.expect({"type": "pong"}, PATIENCE)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attacker_costs_little(attacked: Server, redis: RedisServer | None, attack: str) -> None:
    async with Client(attacked.url) as bystander:
        # Memory that is allocated only once does not count.
        await Attacker(attacked, attack).run(SECONDS / 4)
        memory, stored, logged = attacked.rss, bytes_stored(attacked, redis), len(attacked.log)
        attacker = Attacker(attacked, attack)
        attacking = asyncio.create_task(attacker.run(SECONDS))
        delays = []
        while not attacking.done():
            delays.append(await delay_of_a_ping(bystander))
            memory_now = attacked.rss
            assert memory_now - memory < MEMORY
            await asyncio.sleep(0.02)
        await attacking
        assert attacker.sent > 100_000 or attacker.lasted is not None
        assert statistics.median(delays) < DELAY
        assert attacked.rss - memory < MEMORY / 2, "memory is given back after the attack"
        assert bytes_stored(attacked, redis) - stored < STORED
        assert len(attacked.log) - logged < LOG
        assert attacked.alive
