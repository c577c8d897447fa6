"""A client that reads nothing and sends as much as it can costs little memory and log, and delays others little."""

from __future__ import annotations

import asyncio
import statistics
import time

import pytest

from tests.support.client import Client
from tests.support.fixtures import REDIS
from tests.support.redis import RedisPool
from tests.support.server import Kind, Server, ServerPool

from .adversary import ATTACKS, Attacker

#: How long, in seconds, each attack lasts.
SECONDS = 2.0
#: The bounds for one attacker: bytes of memory and of log, and the median delay of another client's ping in seconds.
MEMORY, LOG, DELAY = 16 * 2**20, 100_000, 0.1
#: How long, in seconds, the server may take to answer another client's ping on a busy machine.
PATIENCE = 30.0


@pytest.fixture(params=["database", *REDIS[:1]])
def attacked(request: pytest.FixtureRequest, servers: ServerPool, kind: Kind) -> Server:
    """A server of each kind, on each engine."""
    if request.param == "database":
        return servers.get(kind)
    pool: RedisPool = request.getfixturevalue("redis_pool")
    return servers.get(kind, REDIS_URL=pool.get(request.param).url, KEY_PREFIX="attacked")


async def delay_of_a_ping(bystander: Client) -> float:
    """Return how long, in seconds, the server takes to answer a ping."""
    began = time.monotonic()
    await bystander.send_raw('{"command":"ping"}')
    await bystander.expect({"type": "pong"}, PATIENCE)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attacker_costs_little(attacked: Server, attack: str) -> None:
    async with Client(attacked.url) as bystander:
        # Memory that is allocated only once does not count.
        await Attacker(attacked, attack).run(SECONDS / 4)
        memory, logged = attacked.rss, len(attacked.log)
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
        assert len(attacked.log) - logged < LOG
        assert attacked.alive
