"""Fixtures of the tests that need servers; conftest modules import them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.client import unique
from tests.support.redis import RedisPool, RedisServer, find_binaries
from tests.support.server import Kind, OtherProcess, Server, ServerPool

KINDS: list[Kind] = ["daphne", "uvicorn"]
#: Every Redis or Valkey that is found; with none, tests that need one are skipped or fail (tests/conftest.py).
REDIS = [pytest.param(name, marks=pytest.mark.redis) for name in [b.name for b in find_binaries()] or ["no redis"]]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """The servers of this test run."""
    pool = ServerPool(tmp_path_factory.mktemp("servers"))
    yield pool
    pool.close()


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which server."""
    kind: Kind = request.param
    return kind


@pytest.fixture
def server(servers: ServerPool, kind: Kind) -> Server:
    """A server with the project's own settings."""
    return servers.get(kind)


@pytest.fixture
def strict(servers: ServerPool, kind: Kind) -> Server:
    """A server with low limits, short times, and public streams."""
    return servers.get(
        kind,
        MAX_SUBSCRIPTIONS=3,
        MAX_MESSAGE_SIZE=2048,
        PING_INTERVAL=0.3,
        # Long enough for a client that answers each ping on a machine that stands still now and then.
        PONG_TIMEOUT=3,
        PRESENCE_TTL=1,
        PUBLIC_STREAMS=True,
        SIGNED_STREAMS_WHISPER=True,
    )


@pytest.fixture
def beside(servers: ServerPool, server: Server) -> OtherProcess:
    """Another process, on the database of `server`."""
    return servers.beside(server)


@pytest.fixture(scope="session")
def redis_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisPool]:
    """The Redis servers of this test run, by name."""
    pool = RedisPool(tmp_path_factory.mktemp("redis"))
    yield pool
    pool.close()


@pytest.fixture(scope="session", params=REDIS)
def redis_server(request: pytest.FixtureRequest, redis_pool: RedisPool) -> RedisServer:
    """A Redis that tests share, once for each program; tests keep apart by `key_prefix`."""
    return redis_pool.get(request.param)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """Where a shared Redis is."""
    return redis_server.url


@pytest.fixture
def key_prefix() -> str:
    """A `KEY_PREFIX` that no other test of this run uses."""
    return unique("cable-test-")
