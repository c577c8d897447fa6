"""Scenarios run against real servers, once for each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.support.client import Client
from tests.support.fixtures import beside, kind, server, servers, strict
from tests.support.server import Server

__all__ = ["beside", "kind", "server", "servers", "strict"]

Connect = Callable[..., Awaitable[Client]]


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
