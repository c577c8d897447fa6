"""A client that reads nothing and sends all it can costs a server little, and hardly delays the other clients."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import time
from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest

from tests.support.client import Client
from tests.support.redis import RedisPool, RedisServer, find_binaries
from tests.support.server import Kind, Server, ServerPool

from .adversary import ATTACKS, Attacker

#: How long, in seconds, each attack lasts.
SECONDS = float(os.environ.get("CABLE_ATTACK_SECONDS", "1"))
#: The most that one attacker may cost, in bytes: memory of the server, data in the stores, and log.
MEMORY, STORED, LOG = 16 * 2**20, 2 * 2**20, 100_000
#: The maximum median time, in seconds, until another client's ping is answered, on a machine that does nothing else.
DELAY = 0.1
#: The maximum number of attempts. A busy machine may delay the answers in some of them.
ATTEMPTS = 3
#: How long, in seconds, the test pauses between two pings.
PAUSE = 0.02
#: How long, in seconds, the server may take to answer another client's ping on a busy machine.
PATIENCE = 30.0


@pytest.fixture(
    params=[
        "database",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("postgres", marks=pytest.mark.postgres),
    ]
)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine of the attacked server: Redis, or the database, which is SQLite (`database`) or PostgreSQL."""
    return str(request.param)


@pytest.fixture
def attacked(request: pytest.FixtureRequest, servers: ServerPool, kind: Kind, engine: str) -> Server:
    """A server of each kind, on each engine."""
    if engine == "postgres":
        pool: ServerPool = request.getfixturevalue("postgres_servers")
        return pool.get(kind)
    if engine == "redis":
        return servers.get(kind, REDIS_URL=request.getfixturevalue("redis").url, KEY_PREFIX="attacked")
    return servers.get(kind)


@pytest.fixture
def redis(redis_pool: RedisPool) -> RedisServer:
    """The Redis of these tests."""
    return redis_pool.get(find_binaries()[0].name)


@pytest.fixture
def bytes_stored(request: pytest.FixtureRequest, attacked: Server, engine: str) -> Callable[[], int]:
    """Return a function that returns how many bytes the engine of the server has stored."""

    def in_redis() -> int:
        redis: RedisServer = request.getfixturevalue("redis")
        return sum(redis.cli("MEMORY", "USAGE", key) or 0 for key in redis.cli("KEYS", "attacked:*"))

    def in_postgres() -> int:
        with psycopg.connect(
            host=request.getfixturevalue("postgres_host"), user="postgres", autocommit=True
        ) as connection:
            row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])

    def in_sqlite() -> int:
        with closing(sqlite3.connect(attacked.database)) as database:
            size, pages, free = (
                database.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "page_count", "freelist_count")
            )
        return int(size * (pages - free))

    return {"redis": in_redis, "postgres": in_postgres, "database": in_sqlite}[engine]


async def delay_of_a_ping(bystander: Client) -> float:
    """Return how long, in seconds, the server takes to answer a ping."""
    began = time.monotonic()
    await bystander.send_raw('{"command":"ping"}')
    await bystander.expect({"type": "pong"}, PATIENCE)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attacker_costs_little(
    request: pytest.FixtureRequest, attacked: Server, bytes_stored: Callable[[], int], attack: str
) -> None:
    async with Client(attacked.url) as bystander:
        # This first attack is not measured, because memory that is allocated only once does not count.
        await Attacker(attacked, attack).run(SECONDS / 4)
        for _ in range(ATTEMPTS):
            memory, stored, logged = attacked.rss, bytes_stored(), len(attacked.log)
            attacker = Attacker(attacked, attack)
            attacking = asyncio.create_task(attacker.run(SECONDS))
            delays, lags, highest = [], [], 0
            while not attacking.done():
                delays.append(await delay_of_a_ping(bystander))
                highest = max(highest, attacked.rss - memory)
                began = time.monotonic()
                await asyncio.sleep(PAUSE)
                lags.append(time.monotonic() - began - PAUSE)
            await attacking
            returned = attacked.rss - memory
            more_stored, more_logged = bytes_stored() - stored, len(attacked.log) - logged
            # On a busy machine, processes wait for a processor. The server then waits at least as long as this process.
            delay, lag = statistics.median(delays), statistics.median(lags)
            # The report of `--junitxml` contains these values.
            request.node.user_properties += [
                ("sent", attacker.sent),
                ("lasted", attacker.lasted),
                ("memory", highest),
                ("memory afterwards", returned),
                ("stored", more_stored),
                ("logged", more_logged),
                ("delay", delay),
                ("longest delay", max(delays)),
                ("lag of this process", lag),
            ]
            assert attacker.sent > 50_000 or attacker.lasted is not None
            assert highest < MEMORY
            assert returned < MEMORY / 2, "memory is given back after the attack"
            assert more_stored < STORED
            assert more_logged < LOG
            assert attacked.alive
            if delay < DELAY + 4 * lag:
                break
        assert delay < DELAY + 4 * lag
