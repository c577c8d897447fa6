"""Fixtures for tests against real servers. Each test runs on each kind of server and on each engine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from tests.support.client import Client, unique
from tests.support.fixtures import beside, kind, server, strict
from tests.support.redis import CLUSTER, RedisPool, RedisServer, find_binaries
from tests.support.redis_cluster import RedisCluster
from tests.support.server import Server, ServerPool

__all__ = ["beside", "kind", "server", "strict"]

Connect = Callable[..., Awaitable[Client]]
Pair = tuple[Server, Server]


def redis_options(server: RedisServer | RedisCluster, prefix: str) -> dict[str, Any]:
    """Return the settings for servers that share a Redis."""
    return {"REDIS_URL": server.url, "KEY_PREFIX": prefix}


SharedRedis = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def shared_redis(request: pytest.FixtureRequest) -> SharedRedis:
    """Return a function that makes settings for servers on a Redis of this test run, with a new key prefix.

    Its argument is the engine: `redis` or `cluster`.
    """

    def settings(engine: str = "redis") -> dict[str, Any]:
        pool: RedisPool = request.getfixturevalue("redis_pool")
        return redis_options(pool.find(CLUSTER if engine == CLUSTER else find_binaries()[0].name), unique("shared"))

    return settings


#: The engines of the servers under test.
ENGINES = [
    pytest.param("redis", marks=pytest.mark.redis),
    pytest.param("database"),
    pytest.param(CLUSTER, marks=pytest.mark.redis),
]


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine of the servers under test."""
    return str(request.param)


@pytest.fixture(scope="session")
def pools(shared_redis: SharedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerPool]]:
    """The shared servers of this test run, by engine."""
    pools = {
        "redis": ServerPool(tmp_path_factory.mktemp("servers"), shared_redis),
        "database": ServerPool(tmp_path_factory.mktemp("servers")),
        CLUSTER: ServerPool(tmp_path_factory.mktemp("servers"), partial(shared_redis, CLUSTER)),
    }
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="session")
def servers(pools: dict[str, ServerPool], engine: str) -> ServerPool:
    """The shared servers of one engine. Each server on Redis has its own key prefix."""
    return pools[engine]


@pytest.fixture(scope="session")
def shared(
    engine: str, servers: ServerPool, shared_redis: SharedRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Two running servers with one database and, if the engine is Redis, one Redis.

    They are daphne and uvicorn; on a Redis Cluster, both are uvicorn.
    """
    options = {} if engine == "database" else shared_redis(engine)
    with (
        servers.make("uvicorn" if engine == CLUSTER else "daphne", **options) as first,
        Server("uvicorn", tmp_path_factory.mktemp("second"), first.database, options, shared=True) as second,
    ):
        yield first, second


@pytest.fixture
async def pair(shared: Pair) -> AsyncIterator[Pair]:
    """Two running servers with the same stores. A test may suspend or kill them; they run again after it."""
    yield shared
    for one in shared:
        if one.alive:
            one.signal(signal.SIGCONT)
        else:
            await one.restart()


async def suspend(server: Server, other: Server) -> None:
    """Suspend a server process (SIGSTOP) while it holds no lock on the database that it shares with another server."""
    while True:
        server.signal(signal.SIGSTOP)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await other.call("broadcast", unique("unlocked"), {"n": 1})
                return
        server.signal(signal.SIGCONT)


@pytest.fixture
async def clients() -> AsyncIterator[AsyncExitStack]:
    """A stack for clients, which are closed at the end of the test."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def connect(server: Server, clients: AsyncExitStack) -> Connect:
    """Return a function that connects a client to `server`. It takes the arguments of `Client`."""

    async def connect(**options: Any) -> Client:
        return await clients.enter_async_context(Client(server.url, **options))

    return connect


@pytest.fixture
def connect_to(clients: AsyncExitStack) -> Callable[..., Awaitable[Client]]:
    """Return a function that connects a client to a given server. It takes the arguments of `Client`."""

    async def connect_to(server: Server, **options: Any) -> Client:
        return await clients.enter_async_context(Client(server.url, **options))

    return connect_to
