"""Readers of runs over HTTP cost a server little: no thread, and bounded memory if they are slow."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.contrib.auth.models import Group, User
from django.core.asgi import get_asgi_application
from django.test import AsyncClient
from uvicorn.config import Config
from uvicorn.server import ServerState

from reliable_cable.consumer import get_hub
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.runs.http import reading
from reliable_cable.runs.models import Run
from reliable_cable.servers.responses import DaphneResponse, ResponseTransport, UvicornResponse
from tests.support.daphne_request import DaphneRequest
from tests.unit.runs.chat_client import is_left, written

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chats")]

SIZE = 3_000_000


@pytest.fixture
async def run(member: User) -> Run:
    return await Run.objects.astart(owner=member, subject=await Group.objects.aget())


@pytest.fixture
async def request_(browser: AsyncClient, run: Run) -> bytes:
    """A request for the stream of the run."""
    cookie = browser.cookies["sessionid"].value
    return f"GET /runs/chat/ann/1/stream HTTP/1.1\r\nHost: x\r\nCookie: sessionid={cookie}\r\n\r\n".encode()


async def transport_of_reader() -> tuple[Any, ResponseTransport]:
    """Return the connection of the only reader, and the transport of its response."""
    async with asyncio.timeout(20):
        while not get_hub().connections.all():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    connection: Any
    (connection,) = get_hub().connections.all()
    assert isinstance(connection.transport, reading.ReaderTransport)
    response = connection.transport._response
    assert response is not None
    return connection, response


@pytest.fixture
def threads(request: pytest.FixtureRequest, chats: None, settings: Any) -> int:
    """The setting `HANDLER_THREADS`, which a test may choose."""
    threads: int = getattr(request, "param", 8)
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "HANDLER_THREADS": threads}
    return threads


@pytest.fixture
async def daphne(threads: int, request_: bytes) -> AsyncIterator[DaphneRequest]:
    request = DaphneRequest(get_asgi_application(), request_)
    yield request
    request.lose()
    await is_left()


async def read(request: DaphneRequest, until: bytes) -> bytes:
    """Receive data until these bytes arrive, and return all of it. The server's transport writes meanwhile."""
    received = bytearray()
    request.client.setblocking(False)
    async with asyncio.timeout(60):
        while until not in received:
            if request.reactor.writers:
                request.connection.doWrite()
            try:
                received += request.client.recv(1_000_000)
            except BlockingIOError:
                await asyncio.sleep(0.001)
    return bytes(received)


async def test_a_slow_reader_on_daphne_costs_bounded_memory(daphne: DaphneRequest, run: Run) -> None:
    connection, response = await transport_of_reader()
    assert isinstance(response, DaphneResponse)
    async with written(run) as out:
        for _ in range(SIZE // 10_000):
            out.write(10_000 * "x")
            await asyncio.sleep(0.001)
        async with asyncio.timeout(20):
            while not connection.outbox._paused:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        unsent = response.unsent()
        assert unsent is not None
        assert unsent < SIZE / 3
    # The reader gets everything when it reads again.
    received = await read(daphne, until=b"[DONE]")
    _, _, body = received.partition(b"\r\n\r\n")
    assert body.count(b"x") == SIZE + body.count(b"text-")


async def test_a_reader_on_daphne_that_is_too_slow_is_disconnected(daphne: DaphneRequest) -> None:
    connection, response = await transport_of_reader()
    connection.close(DisconnectReason.TOO_SLOW)
    await is_left()
    daphne.lose()
    assert response.lost


async def test_a_reader_on_uvicorn_that_is_too_slow_is_disconnected(request_: bytes) -> None:
    config = Config(get_asgi_application(), log_config=None, http="h11", timeout_graceful_shutdown=7)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    factory: Any = config.http_protocol_class
    async with await loop.create_server(lambda: factory(config, state, {}, loop), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request_)
        connection, response = await transport_of_reader()
        assert isinstance(response, UvicornResponse)
        assert response.unsent() is not None
        connection.close(DisconnectReason.TOO_SLOW)
        async with asyncio.timeout(20):
            assert not (await reader.read()).endswith(b"0\r\n\r\n"), "the body must not be ended"
        assert response.lost
        writer.close()
        await is_left()
        await asyncio.gather(*state.tasks)


@pytest.mark.parametrize("threads", [8, 0], indirect=True)
async def test_a_reader_occupies_no_thread_of_django(daphne: DaphneRequest, run: Run, threads: int) -> None:
    """Without `release_own_thread`, each reader would occupy a thread of Django and the thread's database connection.

    If `HANDLER_THREADS` is 0, the thread stays, because the handlers need it.
    """
    async with written(run) as out:
        out.write("answer")
        await read(daphne, until=b"answer")
        gc.collect()
        assert bool(dict(SyncToAsync.context_to_thread_executor)) is (threads == 0)
