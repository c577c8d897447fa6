"""Servers with wrong clocks share a Redis, and only the clock of Redis may matter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conformance.conftest import Connect, SharedRedis
from tests.conformance.test_disconnect import connect_afterwards, expect_disconnect
from tests.conformance.test_takeover import resume, subscribe
from tests.support.client import PATIENCE, identify, unique
from tests.support.clock import find_faketime, wrong_clock
from tests.support.server import OtherProcess, Server, ServerPool

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(find_faketime() is None, reason="libfaketime is not installed"),
]


@pytest.fixture(scope="module")
def options(shared_redis: SharedRedis) -> dict[str, str]:
    """Settings that make all servers of a test use the same Redis."""
    return shared_redis()


@pytest.fixture(scope="module")
def right(pools: dict[str, ServerPool], options: dict[str, str]) -> Iterator[Server]:
    """A server whose clock is right."""
    with pools["database"].make("daphne", **options) as server:
        yield server


@pytest.fixture(scope="module", params=[-5.0, 60.0])
def wrong(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, right: Server, options: dict[str, str]
) -> Iterator[Server]:
    """A server whose clock is some seconds fast or slow."""
    folder: Path = tmp_path_factory.mktemp("wrong")
    with Server("uvicorn", folder, right.database, options, shared=True, **wrong_clock(request.param)) as server:
        yield server


@pytest.fixture(params=["wrong to right", "right to wrong"])
def order(request: pytest.FixtureRequest, right: Server, wrong: Server) -> tuple[Server, Server]:
    """Both servers, once in each order."""
    return (wrong, right) if request.param == "wrong to right" else (right, wrong)


async def test_a_disconnect_closes_all_connections_and_allows_later_ones(
    order: tuple[Server, Server], connect_to: Connect
) -> None:
    here, there = order
    name = unique("user")
    cookie = await here.sign_in(name)
    clients = [await connect_to(server, cookie=cookie) for server in order]
    await here.call("disconnect_user", name)
    for client in clients:
        await expect_disconnect(client, reconnect=False)
    client = await connect_afterwards(there, cookie=cookie)
    identifier = await subscribe(client)
    await client.cut()
    reconnected = await connect_to(here, cookie=cookie, sid=client.sid)
    await resume(reconnected, identifier)


@pytest.mark.parametrize("where", ["in a server", "in a process without connections"])
async def test_broadcasts_after_a_page_was_rendered_are_not_lost(
    where: str, right: Server, wrong: Server, connect_to: Connect
) -> None:
    with ExitStack() as stack:
        renderer = wrong if where == "in a server" else stack.enter_context(OtherProcess(wrong))
        # The time in pages becomes right soon after the first page, when the server has asked Redis for its clock.
        deadline = time.monotonic() + PATIENCE
        while not -2 <= (since := await renderer.call("page_time")) - time.time() <= 0:
            assert time.monotonic() < deadline, "the time of a page is wrong"
            await asyncio.sleep(0.05)
    stream = unique("stream")
    await right.call("count_up", stream, 1, 5)
    client = await connect_to(right)
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream]), history={"since": since})
    assert [message["n"] for message in await client.messages(identifier, 5)] == [1, 2, 3, 4, 5]
    await client.expect({"type": "confirm_history"})


async def test_a_disconnect_ends_sessions_without_a_connection(
    order: tuple[Server, Server], connect_to: Connect
) -> None:
    here, there = order
    name = unique("user")
    cookie = await here.sign_in(name)
    away = await connect_to(there, cookie=cookie)
    await subscribe(away)
    await away.cut()
    await here.call("disconnect_user", name)
    reconnected = await connect_afterwards(there, cookie=cookie, sid=away.sid)
    assert "restored" not in reconnected.welcome
    await reconnected.close()
