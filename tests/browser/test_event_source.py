"""Chromium's `EventSource` on `GET /events`: nothing is missing or repeated after kills and restarts of servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.async_api import Browser, Page

from tests.browser.conftest import fixture
from tests.browser.demo import eventually
from tests.support.client import unique
from tests.support.nginx import DeployedServer, Nginx
from tests.support.server import OtherProcess, Server, make_database

pytestmark = [pytest.mark.browser, pytest.mark.nginx, pytest.mark.asyncio(loop_scope="session")]

#: A JavaScript function that reads a URL with an `EventSource`, and collects the data of its events by their types.
READ = """url => {
    window.seen = {message: [], price: [], reject_history: [], confirm_subscription: [], opens: 0, closed: false}
    seen.id = ""
    const source = new EventSource(url)
    source.onopen = () => seen.opens++
    source.addEventListener("welcome", ({data}) => seen.sid = JSON.parse(data).sid)
    source.addEventListener("ping", ({lastEventId}) => seen.id = lastEventId)
    source.onerror = () => seen.closed = source.readyState === EventSource.CLOSED
    for (const type of ["message", "price", "reject_history", "confirm_subscription"]) {
        source.addEventListener(type, ({data}) => seen[type].push(data))
    }
}"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """A daphne server and a uvicorn server with the same database."""
    folder = tmp_path_factory.mktemp("events")
    database = make_database(folder)
    settings = {"PUBLIC_STREAMS": True}
    with (
        DeployedServer("daphne", folder, database, settings, shared=True) as daphne,
        DeployedServer("uvicorn", folder, database, settings, shared=True) as uvicorn,
    ):
        yield [daphne, uvicorn]


@pytest.fixture(scope="module")
def nginx(pair: list[Server]) -> Iterator[Nginx]:
    """nginx, which forwards to both servers."""
    with Nginx(pair) as nginx:
        yield nginx


@pytest.fixture(scope="module")
def beside(pair: list[Server]) -> Iterator[OtherProcess]:
    """A process that broadcasts while no server is running."""
    with OtherProcess(pair[0]) as process:
        yield process


@fixture
async def page(chromium: Browser) -> AsyncIterator[Page]:
    """A page of a new browser context."""
    context = await chromium.new_context()
    yield await context.new_page()
    await context.close()


class Streams:
    """Four streams that one `EventSource` reads, two of them in a channel. `say` broadcasts a number to each."""

    def __init__(self, beside: OtherProcess) -> None:
        self.names = [unique("large:") for _ in range(4)]
        self.count = 0
        self._beside = beside

    @property
    def query(self) -> str:
        """The query of a URL that reads the streams."""
        channel = json.dumps({"channel": "StreamChannel", "streams": self.names[:2]})
        return urlencode([("identifier", channel), *(("stream", name) for name in self.names[2:])])

    async def say(self) -> None:
        """Broadcast the next number to each stream. For the last stream, it is HTML in an event with a type."""
        self.count += 1
        for name in self.names[:3]:
            await self._beside.call("broadcast", name, [name, self.count])
        html = f"<p>\n{self.count}\n</p>"
        await self._beside.call("broadcast", self.names[3], {"$event": "price", "data": html})

    async def check(self, page: Page) -> None:
        """Wait until the page has every number, and check that it has each once and in order."""
        await eventually(partial(page.evaluate, f"seen.message.length >= {3 * self.count}"))
        await eventually(partial(page.evaluate, f"seen.price.length >= {self.count}"))
        seen: dict[str, Any] = await page.evaluate("seen")
        numbers = range(1, self.count + 1)
        messages = [json.loads(data) for data in seen["message"]]
        for name in self.names[:3]:
            assert [number for stream, number in messages if stream == name] == list(numbers)
        assert seen["price"] == [f"<p>\n{number}\n</p>" for number in numbers]
        assert (seen["reject_history"], seen["closed"]) == ([], False)

    async def read(self, page: Page, port: int) -> None:
        """Open a page of the server at this port, make it read the streams, and wait for the confirmations."""
        await page.goto(f"http://127.0.0.1:{port}/health")
        await page.evaluate(READ, f"/events?{self.query}")
        await eventually(partial(page.evaluate, "seen.confirm_subscription.length === 3"))


@pytest.mark.parametrize("which", [0, 1], ids=["daphne", "uvicorn"])
async def test_a_reader_misses_nothing_when_its_server_is_killed(
    pair: list[Server], beside: OtherProcess, page: Page, which: int
) -> None:
    server, streams = pair[which], Streams(beside)
    await streams.read(page, server.port)
    # Nothing was sent before the first kill, so the reader has only the ids of the confirmations.
    for opens in (1, 2):
        server.kill()
        await streams.say()
        await asyncio.to_thread(server.start)
        await eventually(partial(page.evaluate, f"seen.opens > {opens}"))
        await streams.say()
    await streams.check(page)


@pytest.mark.parametrize("which", [0, 1], ids=["daphne", "uvicorn"])
async def test_a_reader_does_not_get_what_excluded_it_after_a_kill(
    pair: list[Server], beside: OtherProcess, page: Page, which: int
) -> None:
    server, name, other = pair[which], unique("own"), unique("own")
    await page.goto(f"http://127.0.0.1:{server.port}/health")
    await page.evaluate(READ, f"/events?{urlencode([('stream', name), ('stream', other)])}")
    await eventually(partial(page.evaluate, "seen.confirm_subscription.length === 2"))
    await beside.call("broadcast", name, "own", exclude_socket=await page.evaluate("seen.sid"))
    # An id without data causes no event in the page, which sees the id only with the next ping.
    await eventually(partial(page.evaluate, "seen.id.startsWith('*1/')"))
    server.kill()
    await asyncio.to_thread(server.start)
    await eventually(partial(page.evaluate, "seen.opens > 1"))
    await beside.call("broadcast", name, "next")
    await eventually(partial(page.evaluate, "seen.message.length > 0"))
    assert await page.evaluate("seen.message") == ["next"]


async def test_a_reader_misses_nothing_while_the_servers_behind_nginx_restart(
    pair: list[Server], nginx: Nginx, beside: OtherProcess, page: Page
) -> None:
    streams = Streams(beside)
    await streams.read(page, nginx.port)
    stopped = False

    async def talk() -> None:
        while not stopped:
            await streams.say()

    talking = asyncio.create_task(talk())
    for _ in range(2):
        for server in pair:
            await server.terminate()
            await asyncio.to_thread(server.start)
    stopped = True
    await talking
    await streams.say()
    await streams.check(page)
    assert await page.evaluate("seen.opens") > 1
