"""Clients of two servers on a Redis Cluster get each message once and in order while slots move and nodes fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from reliable_cable.stores.redis.keys import KeyNames, key_slot
from tests.support.client import PATIENCE, identify, unique
from tests.support.recovering import RecoveringClient
from tests.support.redis_cluster import RedisCluster
from tests.support.server import CallFailed, Server, ServerPool

pytestmark = pytest.mark.redis

PREFIX = "moving"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """A cluster for one test, whose nodes soon notice failures."""
    with RedisCluster(tmp_path, replicas=1, node_timeout=5.0) as started:
        yield started


@pytest.fixture
async def two_servers(tmp_path: Path, cluster: RedisCluster) -> AsyncIterator[tuple[Server, Server]]:
    """Two processes of uvicorn on the cluster."""
    pool = ServerPool(tmp_path)
    (tmp_path / "second").mkdir()
    options = {"REDIS_URL": cluster.url, "KEY_PREFIX": PREFIX, "HISTORY_SIZE": 10_000}
    with (
        pool.make("uvicorn", **options) as first,
        Server("uvicorn", tmp_path / "second", first.database, options, shared=True) as second,
    ):
        yield first, second


def slot_of(stream: str) -> int:
    return key_slot(KeyNames(PREFIX, cluster=True).partition(stream))


class Broadcaster:
    """Broadcasts numbers one after another, and repeats a failed broadcast with the same idempotency key."""

    def __init__(self, server: Server, stream: str) -> None:
        self._server = server
        self._stream = stream
        #: The newest number that was broadcast.
        self.newest = 0
        self._key = unique("key")
        self._stopped = False
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> list[int]:
        """Stop, and return all numbers."""
        self._stopped = True
        await self._task
        return list(range(1, self.newest + 1))

    async def more(self, count: int) -> None:
        """Wait until `count` more numbers have been broadcast."""
        wanted = self.newest + count
        async with asyncio.timeout(2 * PATIENCE), self._changed:
            await self._changed.wait_for(lambda: self.newest >= wanted)

    async def _run(self) -> None:
        while not self._stopped:
            number = self.newest + 1
            try:
                key = f"{self._key}-{number}"
                await self._server.call("broadcast", self._stream, {"n": number}, idempotency_key=key)
            except CallFailed:  # the slot has no primary at the moment
                await asyncio.sleep(0.05)
            else:
                self.newest = number
                async with self._changed:
                    self._changed.notify_all()


def numbers(client: RecoveringClient, identifier: str) -> list[int]:
    return [message["n"] for message in client.received[identifier]]


async def wait_until_pages_miss_nothing(server: Server, identifier: str) -> None:
    """Wait until new pages get their history: the cluster's data are older, and the server knows the cluster's time."""
    found = False
    async with asyncio.timeout(PATIENCE):
        while not found:
            async with RecoveringClient(server.url) as client:
                await client.subscribe(identifier)
                await client.wait_for(lambda client=client: client.infos[identifier])  # type: ignore[misc]
                found = client.infos[identifier] == ["history_received"]


async def test_clients_miss_nothing_while_slots_move_and_are_told_of_a_failover(
    cluster: RedisCluster, two_servers: tuple[Server, Server]
) -> None:
    stream = unique("moving")
    identifier, slot = identify("StreamChannel", streams=[stream]), slot_of(stream)
    async with AsyncExitStack() as stack:
        urls = [server.url for server in two_servers for _ in range(3)]
        for server in two_servers:
            await wait_until_pages_miss_nothing(server, identifier)
        clients = [await stack.enter_async_context(RecoveringClient(url)) for url in urls]
        for client in clients:
            await client.subscribe(identifier)
        broadcaster = Broadcaster(two_servers[0], stream)
        for _ in range(2):
            await broadcaster.more(10)
            await asyncio.to_thread(cluster.move, slot, cluster.other(cluster.owner(slot)))
            for client in clients[::2]:
                await client.cut()  # so that its replay is read from the new node
        await broadcaster.more(10)
        sent = await broadcaster.stop()
        for client in clients:
            await client.wait_for_messages(identifier, len(sent))
            assert numbers(client, identifier) == sent
            assert "history_not_found" not in client.infos[identifier]

        for client in clients:
            client.received.clear()
        primary = await asyncio.to_thread(cluster.owner, slot)
        await asyncio.to_thread(cluster.replica_of, primary)
        broadcaster = Broadcaster(two_servers[1], stream)
        await broadcaster.more(10)
        primary.kill()
        await asyncio.to_thread(cluster.wait_for_agreement)
        await broadcaster.more(10)
        sent = await broadcaster.stop()
        for client in clients:
            await client.wait_for(lambda client=client: sent[-1] in numbers(client, identifier))  # type: ignore[misc]
            if numbers(client, identifier) != sent:
                assert "history_not_found" in client.infos[identifier]
