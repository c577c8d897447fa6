"""Tests of a rolling restart: two servers behind nginx restart one after the other, and no message is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from reliable_cable.connection.outbox import STALL_TIME
from tests.support.client import Client, identify, unique
from tests.support.event_reader import EventReader
from tests.support.nginx import DeployedServer, Nginx
from tests.support.recovering import RecoveringClient
from tests.support.redis import RedisPool, find_binaries
from tests.support.server import OtherProcess, Server, make_database

pytestmark = pytest.mark.nginx

CLIENTS = 20
STREAMS = 4


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """The settings of an engine that several servers can share. By default, this is the database."""
    if getattr(request, "param", "database") == "database":
        return {}
    redis: RedisPool = request.getfixturevalue("redis_pool")
    return {"REDIS_URL": redis.get(find_binaries()[0].name).url, "KEY_PREFIX": unique("cable-test-")}


@pytest.fixture
def pair(tmp_path: Path, engine: Mapping[str, Any]) -> Iterator[list[Server]]:
    """A daphne server and a uvicorn server with the same database."""
    database = make_database(tmp_path)
    with (
        DeployedServer("daphne", tmp_path, database, engine, shared=True) as daphne,
        DeployedServer("uvicorn", tmp_path, database, engine, shared=True) as uvicorn,
    ):
        yield [daphne, uvicorn]


@pytest.fixture
def nginx(pair: list[Server]) -> Iterator[Nginx]:
    """nginx, which forwards to both servers."""
    with Nginx(pair) as nginx:
        yield nginx


@pytest.fixture
async def clients(nginx: Nginx) -> AsyncIterator[list[RecoveringClient]]:
    """Clients that reconnect through nginx."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(RecoveringClient(nginx.url)) for _ in range(CLIENTS)]


class Load:
    """Broadcasts numbers to all streams in turn, from another process, until it is stopped."""

    def __init__(self, beside: OtherProcess, streams: list[str]) -> None:
        self.last = 0
        self._stopped = False
        self._task = asyncio.create_task(self._run(beside, streams))

    async def _run(self, beside: OtherProcess, streams: list[str]) -> None:
        while not self._stopped:
            for stream in streams:
                await beside.call("count_up", stream, self.last + 1, self.last + 1, writer=stream)
            self.last += 1

    async def stop(self) -> int:
        """Stop, and return how many numbers were broadcast to each stream."""
        self._stopped = True
        await self._task
        return self.last


@pytest.mark.parametrize("engine", ["database", pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
async def test_servers_restart_one_after_the_other_under_load(
    pair: list[Server], nginx: Nginx, clients: list[RecoveringClient]
) -> None:
    streams = [unique("large:") for _ in range(STREAMS)]
    wanted = {
        client: [identify("StreamChannel", streams=[streams[(n + k) % STREAMS]]) for k in range(2)]
        for n, client in enumerate(clients)
    }
    for client, identifiers in wanted.items():
        for identifier in identifiers:
            await client.subscribe(identifier)
    with OtherProcess(pair[0]) as beside:
        load = Load(beside, streams)
        # The clients of the first server have to reconnect twice.
        for server in pair:
            await server.terminate()
            await server.restart()
            at = load.last
            for client, identifiers in wanted.items():
                # Wait until the client has reconnected and received a new message.
                await client.wait_for_messages(identifiers[0], at + 1)
        total = await load.stop()
    for client, identifiers in wanted.items():
        for identifier in identifiers:
            await client.wait_for_messages(identifier, total)
            assert [message["n"] for message in client.received[identifier]] == list(range(1, total + 1))
            assert "history_not_found" not in client.infos[identifier]
        assert client.complaints == []
        assert client.connects == client.restores + 1, "sessions must be restored on the other server"
    assert not any("sid=" in server.log for server in pair), "session ids are secret and must not be logged"
    tried = nginx.requests("/cable")
    assert {status for status, _ in tried} == {"101"}, "nginx must not fail a request while one server is up"
    assert {servers for _, servers in tried} > {"101"}, "nginx must have tried the other server at least once"


async def test_readers_of_events_miss_nothing_while_servers_restart(pair: list[Server], nginx: Nginx) -> None:
    streams = [unique("large:") for _ in range(STREAMS)]
    queries = [urlencode([("identifier", identify("StreamChannel", streams=[each])) for each in streams])] * 5
    queries += [urlencode({"identifier": identify("StreamChannel", streams=[each])}) for each in streams]
    url = f"http://127.0.0.1:{nginx.port}"
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(EventReader(url, query)) for query in queries]
        for reader in readers:
            await reader.until_type("confirm_subscription", 4 if reader in readers[:5] else 1)
        with OtherProcess(pair[0]) as beside:
            load = Load(beside, streams)
            for server in pair:
                await server.terminate()
                await server.restart()
            total = await load.stop()
        for reader, stream in zip(readers, [*[""] * 5, *streams], strict=True):
            await reader.until_type("message", total * (1 if stream else STREAMS))
            assert reader.of_type("reject_history") == []
            for name in [stream] if stream else streams:
                numbers = [message["n"] for message in reader.messages if message["writer"] == name]
                assert numbers == list(range(1, total + 1))
        assert max(reader.connects for reader in readers) > 1
    assert {status for status, _ in nginx.requests("/events")} == {"200"}


async def test_clients_are_cut_after_a_reload_of_nginx_and_resume(
    pair: list[Server], nginx: Nginx, clients: list[RecoveringClient]
) -> None:
    stream = unique("large:")
    identifier = identify("StreamChannel", streams=[stream])
    for client in clients:
        await client.subscribe(identifier)
    with OtherProcess(pair[0]) as beside:
        load = Load(beside, [stream])
        nginx.reload()
        for client in clients:
            await cut_and_restored(client)
        total = await load.stop()
    for client in clients:
        await client.wait_for_messages(identifier, total)
        assert [message["n"] for message in client.received[identifier]] == list(range(1, total + 1))
        assert "history_not_found" not in client.infos[identifier]


async def cut_and_restored(client: RecoveringClient) -> None:
    """Wait until nginx has closed the connection of a client (worker_shutdown_timeout), and its session is restored."""
    await client.wait_for(lambda: client.restores == 1)


async def test_a_slow_client_is_noticed_through_nginx(pair: list[Server], nginx: Nginx) -> None:
    # The buffers of nginx and the kernel are limited, so the server notices that the client reads nothing.
    stream, audit = unique("large:"), unique("audit")
    async with Client(nginx.url) as watcher, Client(nginx.url, reading=False) as slow:
        watching = await watcher.subscribe(identify("StreamChannel", streams=[audit]))
        await slow.send("subscribe", identify("AuditedChannel", audit=audit, streams=[stream]))
        assert (await watcher.messages(watching, 1))[0]["event"] == "subscribed"
        flood = asyncio.create_task(pair[0].call("flood", stream, 300, 100_000))
        assert (await watcher.messages(watching, 1, timeout=STALL_TIME + 30))[0]["event"] == "unsubscribed"
        await flood
    assert any("too_slow" in server.log for server in pair)
