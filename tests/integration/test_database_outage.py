"""Tests of database outages: servers still stop on request, and clients see no error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidHandshake

from reliable_cable.servers.drain import STOP_LIMIT
from tests.support import outage
from tests.support.client import Client, identify, unique
from tests.support.postgres import find_postgres, running_postgres
from tests.support.server import Kind, Server, make_database

pytestmark = pytest.mark.postgres

#: How much longer than `STOP_LIMIT`, in seconds, a server may take to stop on a busy machine.
SLACK = 5.0
#: How long, in seconds, the database is unreachable.
AWAY = 3.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The HOST, in Django's settings, of a PostgreSQL server that these tests may stop."""
    binaries = find_postgres()
    assert binaries is not None
    with running_postgres(binaries) as host:
        yield host


@pytest.fixture(scope="module")
def template(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of an empty SQLite file, which `Server` needs as its template.

    The migrated database is in PostgreSQL.
    """
    return make_database(tmp_path_factory.mktemp("migrated"), CABLE_TEST_POSTGRES=postgres)


class Stage:
    """Creates servers for a test, which all use the same PostgreSQL.

    Args:
        postgres: the HOST of the PostgreSQL.
        template: the path of the empty file that `make_database` returned.
        folder: the folder for logs.
    """

    def __init__(self, postgres: str, template: Path, folder: Path) -> None:
        self.postgres = postgres
        self._template = template
        self._folder = folder

    def make(self, kind: Kind, *, cable_serve: bool = False, health_checks: bool = False, **settings: Any) -> Server:
        """Return a server that is not started. `settings` are keys of its setting `RELIABLE_CABLE`."""
        folder = self._folder / f"{kind}-{cable_serve}"
        folder.mkdir()
        server = Server(kind, folder, self._template, settings, shared=True, CABLE_TEST_POSTGRES=self.postgres)
        server.by_cable_serve = cable_serve
        if health_checks:
            server.environment["CABLE_TEST_HEALTH_CHECKS"] = "1"
        return server


@pytest.fixture
def stage(postgres: str, template: Path, tmp_path: Path) -> Stage:
    """Creates the servers of a test."""
    return Stage(postgres, template, tmp_path)


async def try_to_connect(server: Server, cookie: str) -> None:
    """Try for a second to connect as a logged-in user, and disconnect. The connection may fail."""
    client = Client(server.url, cookie=cookie)
    with suppress(OSError, InvalidHandshake, EOFError, TimeoutError):
        async with asyncio.timeout(1):
            await client.open()
        await client.close()


async def ask_for_a_position(server: Server) -> None:
    """Request a view that queries the database. The server may stop before it answers."""
    with suppress(httpx.TransportError):
        await server.call("position", "any")


async def seconds_to_stop(server: Server) -> float:
    """Stop a server, and return how many seconds that took."""
    asked = time.monotonic()
    assert await server.terminate() in (0, -15)
    return time.monotonic() - asked


async def test_servers_stop_in_limited_time_while_the_database_hangs(stage: Stage) -> None:
    kinds: tuple[Kind, ...] = ("daphne", "uvicorn")
    servers = [stage.make(kind, cable_serve=cable_serve) for kind in kinds for cable_serve in (False, True)]
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as waiting:
        for server in servers:
            await asyncio.to_thread(stack.enter_context, server)
        cookie = await servers[0].sign_in("alice")
        clients = [await stack.enter_async_context(Client(server.url, cookie=cookie)) for server in servers]
        echoes = [await client.subscribe(identify("EchoChannel")) for client in clients]
        stack.enter_context(outage.hanging(stage.postgres))
        for server, client, echo in zip(servers, clients, echoes, strict=True):
            await client.perform(echo, "whoami")
            waiting.create_task(try_to_connect(server, cookie))
            waiting.create_task(ask_for_a_position(server))
            await client.send("ping")
            await client.expect({"type": "pong"})
        times = await asyncio.gather(*map(seconds_to_stop, servers))
    assert max(times) < STOP_LIMIT + SLACK, times


@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_a_client_that_left_before_it_was_accepted_causes_no_error(stage: Stage, kind: Kind) -> None:
    with stage.make(kind) as server:
        cookie = await server.sign_in("alice")
        with outage.hanging(stage.postgres):
            await asyncio.gather(*(try_to_connect(server, cookie) for _ in range(5)))
        async with Client(server.url, cookie=cookie) as client:
            # daphne logs errors of applications only once per second. The first ping comes after 1.5 seconds or more.
            await client.ping(1)
        assert "Traceback" not in server.log


@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_subscribes_during_an_outage_are_confirmed_afterwards(stage: Stage, kind: Kind) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(stage.make(kind))
        cookie = await server.sign_in("alice")
        clients = [await stack.enter_async_context(Client(server.url, cookie=cookie)) for _ in range(20)]
        channels = [identify(name, stream="outage") for name in ("QueryChannel", "AsyncQueryChannel")]
        await asyncio.to_thread(outage.stop, stage.postgres)
        for client in clients:
            await client.send("subscribe", channels[0], presence={"id": "alice"}, history={"streams": {}})
            await client.send("subscribe", channels[1])
        await asyncio.sleep(AWAY)
        await asyncio.to_thread(outage.start, stage.postgres)
        for client in clients:
            for channel in channels:
                await client.until({"type": "confirm_subscription", "identifier": channel})
        await server.call("broadcast", "outage", {"n": 1})
        for client in clients:
            await client.until({"message": {"n": 1}})
            await client.until({"message": {"n": 1}})
            received = {(frame.get("type"), frame["identifier"]) for frame in client.log[1:]}
            assert not {("reject_subscription", channel) for channel in channels} & received
        info = await server.call("who_is_there", "outage")
        assert info == {"alice": None}


@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_logins_that_cannot_be_checked_during_an_outage_end_no_connection(stage: Stage, kind: Kind) -> None:
    with stage.make(kind, REAUTHENTICATE_INTERVAL=0.5) as server:
        async with AsyncExitStack() as stack:
            names = [unique("user"), unique("user")]
            cookies = [await server.sign_in(name) for name in names]
            first, second = [await stack.enter_async_context(Client(server.url, cookie=cookie)) for cookie in cookies]
            await asyncio.to_thread(outage.stop, stage.postgres, mode="fast")
            await asyncio.sleep(AWAY)
            await asyncio.to_thread(outage.start, stage.postgres)
            await server.call("change_user", names[0], "update is_active")
            await first.until({"type": "disconnect", "reason": "remote", "reconnect": True})
            await second.nothing()
        # daphne's own handler writes each message a second time.
        assert server.log.count("Logins could not be checked") == {"daphne": 2, "uvicorn": 1}[kind]


@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_a_handshake_right_after_a_restart_needs_health_checks_of_kept_connections(
    stage: Stage, kind: Kind
) -> None:
    """The look-ups of `AuthMiddlewareStack` use a connection that the restart has closed."""
    with stage.make(kind, health_checks=True) as server:
        cookie = await server.sign_in("alice")
        async with Client(server.url, cookie=cookie):
            pass
        await asyncio.to_thread(outage.stop, stage.postgres, mode="fast")
        await asyncio.to_thread(outage.start, stage.postgres)
        async with Client(server.url, cookie=cookie):
            pass
