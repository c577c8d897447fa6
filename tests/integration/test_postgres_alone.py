"""Several servers with PostgreSQL alone: messages arrive by notifications, even after outages or through PgBouncer.

Unless a test says otherwise, servers poll once an hour. So a message of another process arrives by its notification, or
by the poll that a server makes when notifications begin to arrive.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_database_outage import postgres, template
from tests.stores.conftest import until
from tests.support import outage
from tests.support.client import Client, identify
from tests.support.pgbouncer import PgBouncer
from tests.support.server import ROOT, WITHOUT_DAPHNE, CallFailed, Kind, OtherProcess, Server

__all__ = ["postgres", "template"]

pytestmark = pytest.mark.postgres

HOUR = 3600.0
STREAM = identify("AnswerChannel", stream="a")


class Stage:
    """Makes servers that share a PostgreSQL server. The stream `a` keeps the messages of earlier tests."""

    def __init__(self, postgres: str, template: Path, folder: Path) -> None:
        self.postgres = postgres
        self._template = template
        self._folder = folder
        self._count = 0

    def make(self, pooler: PgBouncer | None = None, **settings: Any) -> Server:
        """Return a server that is not started. It connects to PostgreSQL directly, or through a pooler."""
        self._count += 1
        kind: Kind = "daphne" if self._count == 1 else "uvicorn"
        folder = self._folder / str(self._count)
        folder.mkdir()
        variables = {"CABLE_TEST_POSTGRES": self.postgres}
        if pooler is not None:
            variables = {"CABLE_TEST_POSTGRES": "127.0.0.1", "CABLE_TEST_POSTGRES_PORT": str(pooler.port)}
        if settings.get("NOTIFY") == "direct":
            variables["CABLE_TEST_DIRECT_POSTGRES"] = self.postgres
        return Server(kind, folder, self._template, {"POLL_INTERVAL": HOUR, **settings}, shared=True, **variables)


@pytest.fixture
def stage(postgres: str, template: Path, tmp_path: Path) -> Stage:
    """Makes the servers of a test."""
    return Stage(postgres, template, tmp_path)


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Client]:
    """A client that is subscribed to the stream `a`."""
    async with Client(server.url) as client:
        await client.subscribe(STREAM)
        yield client


async def is_logged(server: Server, text: str) -> None:
    """Wait until the server has logged a text."""
    await until(lambda: text in server.log)


async def next_number(client: Client) -> int:
    """Return the number in the next message of the stream `a`."""
    (frame,) = await client.messages(STREAM, 1)
    return int(frame["n"])


async def broadcast(server: Server | OtherProcess, number: int) -> None:
    """Broadcast a number to the stream `a`. Repeat this after errors, with the same idempotency key."""
    key = secrets.token_hex(8)
    async with asyncio.timeout(60):
        while True:
            with suppress(CallFailed):
                await server.call("broadcast", "a", {"n": number}, idempotency_key=key)
                return
            await asyncio.sleep(0.05)


async def test_messages_reach_the_clients_of_other_servers_without_a_poll(stage: Stage) -> None:
    async with AsyncExitStack() as stack:
        servers = [await asyncio.to_thread(stack.enter_context, stage.make()) for _ in range(2)]
        clients = [await stack.enter_async_context(connected(server)) for server in servers]
        command = stack.enter_context(OtherProcess(servers[0]))
        # The first message may be found by the poll that a server makes when notifications begin to arrive.
        senders: list[Server | OtherProcess] = [*servers, command, servers[0], command]
        for number, sender in enumerate(senders):
            await broadcast(sender, number)
            assert [await next_number(client) for client in clients] == [number] * 2
        for whispering, receiving in (clients, reversed(clients)):
            await whispering.send("whisper", STREAM, data={"n": -1})
            assert await next_number(receiving) == -1
        assert not any("cannot LISTEN" in server.log for server in servers)


async def test_nothing_is_lost_while_postgresql_restarts_and_notifications_work_afterwards(stage: Stage) -> None:
    before, total = 20, 60
    async with AsyncExitStack() as stack:
        servers = [await asyncio.to_thread(stack.enter_context, stage.make()) for _ in range(2)]
        clients = [await stack.enter_async_context(connected(server)) for server in servers]
        away = asyncio.Event()

        async def write() -> None:
            for number in range(total):
                if number == before:
                    away.set()
                await broadcast(servers[number % 2], number)

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            await away.wait()
            await asyncio.to_thread(outage.stop, stage.postgres, mode="fast")
            for server in servers:
                await is_logged(server, "cannot LISTEN")
            await asyncio.to_thread(outage.start, stage.postgres)
        for server in servers:
            await is_logged(server, "can LISTEN on the database 'default' again")
        for client in clients:
            assert [await next_number(client) for _ in range(total)] == list(range(total))
        for number, server in enumerate(servers, total):
            await broadcast(server, number)
            assert [await next_number(client) for client in clients] == [number] * 2


async def test_a_forked_worker_notifies_servers_as_its_parent_does(stage: Stage) -> None:
    # Workers of Celery are forked from a process that may have broadcast before.
    program = (
        "import os, django; django.setup()\n"
        "from django.db import connections\n"
        "from reliable_cable import broadcast\n"
        "broadcast('a', {'n': 1})\n"
        "connections.close_all()\n"  # Celery does so, too
        "child = os.fork()\n"
        "if child:\n"
        "    os.waitpid(child, 0)\n"
        "    broadcast('a', {'n': 3})\n"
        "else:\n"
        "    broadcast('a', {'n': 2})\n"
    )
    async with AsyncExitStack() as stack:
        server = await asyncio.to_thread(stack.enter_context, stage.make())
        client = await stack.enter_async_context(connected(server))
        await broadcast(server, 0)
        command = [sys.executable, "-W", "ignore", "-c", program]
        variables = server.environment | WITHOUT_DAPHNE
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert [await next_number(client) for _ in range(4)] == [0, 1, 2, 3]


@pytest.mark.pgbouncer
class TestPgBouncer:
    async def test_a_server_does_not_listen_through_a_pooler_and_polls(self, stage: Stage) -> None:
        async with AsyncExitStack() as stack:
            pooler = stack.enter_context(PgBouncer(stage.postgres, "transaction"))
            server = await asyncio.to_thread(stack.enter_context, stage.make(pooler, POLL_INTERVAL=0.1))
            other = stack.enter_context(OtherProcess(server))
            client = await stack.enter_async_context(connected(server))
            await is_logged(server, "cannot LISTEN on the database 'default': its connections go through a connection")
            for number in range(20):
                await broadcast(other, number)
            assert [await next_number(client) for _ in range(20)] == list(range(20))

    async def test_notifications_arrive_over_a_direct_connection(self, stage: Stage) -> None:
        async with AsyncExitStack() as stack:
            pooler = stack.enter_context(PgBouncer(stage.postgres, "transaction"))
            server = await asyncio.to_thread(stack.enter_context, stage.make(pooler, NOTIFY="direct"))
            other = stack.enter_context(OtherProcess(server))
            client = await stack.enter_async_context(connected(server))
            for number in range(20):
                await broadcast(other, number)
                assert await next_number(client) == number
            assert "cannot LISTEN" not in server.log

    async def test_a_pooler_that_the_settings_name_is_used_if_it_passes_notifications_on(self, stage: Stage) -> None:
        async with AsyncExitStack() as stack:
            poolers = [
                stack.enter_context(PgBouncer(stage.postgres, "session")),
                stack.enter_context(PgBouncer(stage.postgres, "transaction")),
            ]
            session, transaction = [
                await asyncio.to_thread(stack.enter_context, stage.make(pooler, NOTIFY="default", POLL_INTERVAL=poll))
                for pooler, poll in zip(poolers, (HOUR, 0.1), strict=True)
            ]
            clients = [await stack.enter_async_context(connected(server)) for server in (session, transaction)]
            other = stack.enter_context(OtherProcess(session))
            await is_logged(transaction, "its own notifications do not arrive")
            for number in range(20):
                await broadcast(other, number)
                assert [await next_number(client) for client in clients] == [number] * 2
            assert "cannot LISTEN" not in session.log
