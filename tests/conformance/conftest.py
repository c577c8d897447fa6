"""Scenarios run against real servers, once for each kind and each engine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.client import Client, unique
from tests.support.fixtures import beside, kind, server, strict
from tests.support.redis import RedisPool, RedisServer, find_binaries
from tests.support.server import Server, ServerPool

__all__ = ["beside", "kind", "server", "strict"]

Connect = Callable[..., Awaitable[Client]]
Pair = tuple[Server, Server]


def redis_options(server: RedisServer, prefix: str) -> dict[str, Any]:
    """Return the settings of servers that share a Redis."""
    return {"REDIS_URL": server.url, "KEY_PREFIX": prefix}


SharedRedis = Callable[[], dict[str, Any]]


@pytest.fixture(scope="session")
def shared_redis(request: pytest.FixtureRequest) -> SharedRedis:
    """Settings of servers on a Redis of this test run, with keys of their own."""

    def settings() -> dict[str, Any]:
        pool: RedisPool = request.getfixturevalue("redis_pool")
        return redis_options(pool.get(find_binaries()[0].name), unique("shared"))

    return settings


#: What servers can share: a Redis, or only a database.
ENGINES = [pytest.param("redis", marks=pytest.mark.redis), pytest.param("database")]


#: Of tests that are marked `slow`, one kind of server runs on each engine; of all others, both run on both.
SLOW = {("daphne", "database"), ("uvicorn", "redis")}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the other combinations of what is slow."""
    left_out = [item for item in items if item.get_closest_marker("slow") and not _is_chosen(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_chosen(item: pytest.Item) -> bool:
    params = item.callspec.params  # type: ignore[attr-defined]  # of a parametrised function
    return (params["kind"], params["engine"]) in SLOW


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Which engine."""
    return str(request.param)


@pytest.fixture(scope="session")
def pools(shared_redis: SharedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerPool]]:
    """The servers of this test run, by engine."""
    pools = {
        "redis": ServerPool(tmp_path_factory.mktemp("servers"), shared_redis),
        "database": ServerPool(tmp_path_factory.mktemp("servers")),
    }
    yield pools
    for pool in pools.values():
        pool.close()


@pytest.fixture(scope="session")
def servers(pools: dict[str, ServerPool], engine: str) -> ServerPool:
    """The servers on an engine: those on Redis have nothing in common there."""
    return pools[engine]


@pytest.fixture(scope="session")
def shared(
    engine: str, servers: ServerPool, shared_redis: SharedRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Two running servers, daphne and uvicorn, on one database and, by turns, one Redis."""
    options = shared_redis() if engine == "redis" else {}
    with (
        servers.make("daphne", **options) as first,
        Server("uvicorn", tmp_path_factory.mktemp("second"), first.database, options, shared=True) as second,
    ):
        yield first, second


@pytest.fixture
async def pair(shared: Pair) -> AsyncIterator[Pair]:
    """Two running servers that share what they know; a test may stop or kill them."""
    yield shared
    for one in shared:
        if one.alive:
            one.signal(signal.SIGCONT)
        else:
            await one.restart()


async def stand_still(server: Server, other: Server) -> None:
    """Stop a process (SIGSTOP), but not while it has locked the database that it shares with another one."""
    while True:
        server.signal(signal.SIGSTOP)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await other.call("broadcast", unique("unlocked"), {"n": 1})
                return
        server.signal(signal.SIGCONT)


@pytest.fixture
async def clients() -> AsyncIterator[AsyncExitStack]:
    """Whatever is entered here is left at the end of the test."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def connect(server: Server, clients: AsyncExitStack) -> Connect:
    """Open a connection to `server`, with what `Client` takes."""

    async def connect(**options: Any) -> Client:
        return await clients.enter_async_context(Client(server.url, **options))

    return connect


@pytest.fixture
def connect_to(clients: AsyncExitStack) -> Callable[..., Awaitable[Client]]:
    """Open a connection to a server, with what `Client` takes."""

    async def connect_to(server: Server, **options: Any) -> Client:
        return await clients.enter_async_context(Client(server.url, **options))

    return connect_to
