"""Fixtures for tests with real servers. The conftest modules import them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.client import unique
from tests.support.postgres import find_postgres, running_postgres
from tests.support.redis import RedisPool, RedisServer, find_binaries
from tests.support.server import Kind, OtherProcess, Server, ServerPool

KINDS: list[Kind] = ["daphne", "uvicorn"]
#: The names of the Redis and Valkey programs to test. If there is none, tests that need one are skipped or fail (see
#: tests/conftest.py).
REDIS = [pytest.param(name, marks=pytest.mark.redis) for name in [b.name for b in find_binaries()] or ["no redis"]]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """The shared servers of this test run."""
    pool = ServerPool(tmp_path_factory.mktemp("servers"))
    yield pool
    pool.close()


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """The kind of server. Each test runs once for each kind."""
    kind: Kind = request.param
    return kind


@pytest.fixture(scope="session")
def postgres_host() -> Iterator[str]:
    """The HOST, in Django's settings, of a PostgreSQL server that tests share.

    The tests must be marked `postgres`, and must not stop the server.
    """
    binaries = find_postgres()
    assert binaries is not None
    with running_postgres(binaries) as host:
        yield host


@pytest.fixture(scope="session")
def postgres_servers(postgres_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerPool]:
    """The shared servers whose database is on the PostgreSQL server of `postgres_host`."""
    pool = ServerPool(tmp_path_factory.mktemp("servers"), CABLE_TEST_POSTGRES=postgres_host)
    yield pool
    pool.close()


@pytest.fixture
def server(servers: ServerPool, kind: Kind) -> Server:
    """A server with the settings of the test project."""
    return servers.get(kind)


@pytest.fixture
def strict(servers: ServerPool, kind: Kind) -> Server:
    """A server with low limits, short timeouts and public streams."""
    return servers.get(
        kind,
        MAX_SUBSCRIPTIONS=3,
        MAX_MESSAGE_SIZE=2048,
        PING_INTERVAL=0.3,
        # Long enough for a client that answers each ping, even if the machine is blocked for a moment.
        PONG_TIMEOUT=3,
        PRESENCE_TTL=1,
        PUBLIC_STREAMS=True,
        SIGNED_STREAMS_WHISPER=True,
    )


@pytest.fixture
def beside(servers: ServerPool, server: Server) -> OtherProcess:
    """Another process that uses the database of `server`."""
    return servers.beside(server)


@pytest.fixture(scope="session")
def redis_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisPool]:
    """The shared Redis servers of this test run."""
    pool = RedisPool(tmp_path_factory.mktemp("redis"))
    yield pool
    pool.close()


@pytest.fixture(scope="session", params=REDIS)
def redis_server(request: pytest.FixtureRequest, redis_pool: RedisPool) -> RedisServer:
    """A Redis or Valkey server that tests share. Each test runs once with each program in `REDIS`."""
    return redis_pool.get(request.param)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of `redis_server`. Tests separate their keys by the fixture `key_prefix`."""
    return redis_server.url


@pytest.fixture
def key_prefix() -> str:
    """A `KEY_PREFIX` that no other test of this test process uses."""
    return unique("cable-test-")
