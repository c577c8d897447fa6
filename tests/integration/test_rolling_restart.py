"""Two servers behind nginx, as demo_project/deploy has them: they restart one after the other, and nobody loses anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Client, identify, unique
from tests.support.nginx import DeployedServer, Nginx
from tests.support.recovering import RecoveringClient
from tests.support.server import OtherProcess, Server, make_database

pytestmark = pytest.mark.nginx

CLIENTS = 20
STREAMS = 4
ROUNDS = 2
#: Seconds that a client may be without a connection: a server spreads its clients' goodbyes over 1.5 s.
AWAY = 10.0


@pytest.fixture(params=["database"])
def engine(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """The settings of an engine that several servers can share."""
    return {"database": {}}[request.param]


@pytest.fixture
def pair(tmp_path: Path, engine: Mapping[str, Any]) -> Iterator[list[Server]]:
    """A daphne and a uvicorn on one database."""
    database = make_database(tmp_path)
    with (
        DeployedServer("daphne", tmp_path, database, engine, shared=True) as daphne,
        DeployedServer("uvicorn", tmp_path, database, engine, shared=True) as uvicorn,
    ):
        yield [daphne, uvicorn]


@pytest.fixture
def nginx(pair: list[Server]) -> Iterator[Nginx]:
    """Nginx in front of them."""
    with Nginx(pair) as nginx:
        yield nginx


@pytest.fixture
async def clients(nginx: Nginx) -> AsyncIterator[list[RecoveringClient]]:
    """Clients that come back through nginx."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(RecoveringClient(nginx.url)) for _ in range(CLIENTS)]


class Load:
    """Numbers, broadcast to every stream in turn by a process beside the servers, until it is stopped."""

    def __init__(self, beside: OtherProcess, streams: list[str]) -> None:
        self.last = 0
        self._stopped = False
        self._task = asyncio.create_task(self._run(beside, streams))

    async def _run(self, beside: OtherProcess, streams: list[str]) -> None:
        while not self._stopped:
            for stream in streams:
                await beside.call("count_up", stream, self.last + 1, self.last + 1)
            self.last += 1

    async def stop(self) -> int:
        """Stop; return how many each stream got."""
        self._stopped = True
        await self._task
        return self.last


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
        for _ in range(ROUNDS):
            for server in pair:
                await server.terminate()
                await server.restart()
                at = load.last
                for client, identifiers in wanted.items():
                    # Each is back, and receives what is broadcast now.
                    await client.wait_for_messages(identifiers[0], at + 1)
        total = await load.stop()
    for client, identifiers in wanted.items():
        for identifier in identifiers:
            await client.wait_for_messages(identifier, total)
            assert [message["n"] for message in client.received[identifier]] == list(range(1, total + 1))
            assert "history_not_found" not in client.infos[identifier]
        assert client.complaints == []
        assert client.connects == client.restores + 1, "sessions go on, on the other server"
    requests = nginx.requests("/cable")
    print(total, len(requests), sum(c.connects for c in clients), {r: requests.count(r) for r in set(requests)}, nginx.errors[:3], len(nginx.errors))
    assert {status for status, _ in requests} == {"101"}, "nobody was handed a server that was not there"
