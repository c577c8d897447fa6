"""A Redis, its replica, and a proxy that can forward clients to either of them, for tests of failovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.support.faults import FaultProxy
from tests.support.redis import RedisServer, find_binaries

MakeStore = Callable[..., RedisStreamStore]


class RedisPair:
    """A Redis primary, its replica, and a proxy, which forwards to the primary until a test redirects it."""

    @pytest.fixture(params=[pytest.param(binary, id=binary.name) for binary in find_binaries()])
    def primary(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
        with RedisServer(tmp_path / "primary", request.param, {"repl-diskless-sync-delay": "0"}) as server:
            yield server

    @pytest.fixture
    def replica(self, primary: RedisServer, tmp_path: Path) -> Iterator[RedisServer]:
        """A replica of `primary`."""
        with RedisServer(tmp_path / "replica", primary.binary, {"repl-diskless-sync-delay": "0"}) as server:
            server.follow(primary)
            yield server

    @pytest.fixture
    async def address(self, primary: RedisServer) -> AsyncIterator[FaultProxy]:
        """A proxy that forwards new connections to `primary`, until its method `move` is called."""
        async with FaultProxy(primary.port) as proxy:
            yield proxy

    @pytest.fixture
    def make_store(self, address: FaultProxy, made_stores: list[Any]) -> MakeStore:
        """A function that makes stores, which connect to the proxy or to another port.

        The stores act like those of separate processes.
        """

        def make(port: int | None = None, **settings: Any) -> RedisStreamStore:
            store = RedisStreamStore(CableSettings(redis_url=f"redis://127.0.0.1:{port or address.port}/0", **settings))
            made_stores.append(store)
            return store

        return make


async def promote(replica: RedisServer, primary: RedisServer) -> None:
    """Promote a replica when it has all data of its primary. Neither the primary nor the proxy is told."""
    await asyncio.to_thread(primary.wait_for_replicas)
    replica.promote()


def fail_over(address: FaultProxy, old: RedisServer, new: RedisServer) -> None:
    """Promote an up-to-date replica, demote the primary, and make the proxy forward to the new primary.

    Open connections stay open.
    """
    old.wait_for_replicas()
    new.promote()
    old.follow(new)
    address.move(new.port)


async def append(store: RedisStreamStore, *data: str) -> list[StreamPosition]:
    return await store.aappend([("a", Message(text)) for text in data])
