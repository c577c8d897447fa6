"""Scenarios run against real servers, once for each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.server import Kind, OtherProcess, Server, ServerPool

KINDS: list[Kind] = ["daphne", "uvicorn"]

Connect = Callable[..., Awaitable[Client]]


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
        PONG_TIMEOUT=0.5,
        PRESENCE_TTL=1,
        PUBLIC_STREAMS=True,
        SIGNED_STREAMS_WHISPER=True,
    )


@pytest.fixture
def beside(servers: ServerPool, server: Server) -> OtherProcess:
    """Another process, on the database of `server`."""
    return servers.beside(server)


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
