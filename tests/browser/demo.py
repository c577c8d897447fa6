"""Helpers of the browser tests: the server of the demo, a process that sends messages, and browser windows."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from playwright.async_api import ConsoleMessage, Error, Locator, Page, Request, Response, WebSocket, expect

from tests.support.server import LOCAL, PATIENCE, ROOT, Server

PROJECT = "tests.browser.project"

#: How long, in milliseconds, to wait for a page on a busy machine. The client waits longer between later attempts to
#: connect, so it may be away for half a minute after a server has started slowly.
PAGE_PATIENCE = 60_000
expect.set_options(timeout=PAGE_PATIENCE)

#: Messages that a page may log when its connection is broken: Chromium logs them about the WebSocket or the events, the
#: npm client about an action that the page calls at that moment, and htmx about its connection.
BROKEN_CONNECTION = re.compile(
    r"WebSocket connection to 'ws://127\.0\.0\.1:\d+/cable\S*' failed: |perform failed \{error: DisconnectedError"
    r"|Failed to load resource: net::ERR_|\[object Event\]$|htmx: htmx:sse:error: "
)

_numbers = itertools.count(1)


def environment(database: Path) -> dict[str, str]:
    """Return the environment variables of a process of the demo with a separate database."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": f"{PROJECT}.settings",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "DEMO_DATABASE": str(database),
        "DEMO_TOKEN_DELAY": "0.1",
    }


def prepare(database: Path) -> None:
    """Create the database and the bundle of the client with `manage.py demo`, without starting the server."""
    command = [sys.executable, "manage.py", "demo", "--prepare-only"]
    subprocess.run(command, cwd=ROOT, env=environment(database), check=True, timeout=PATIENCE * 4, capture_output=True)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Check a condition repeatedly until it holds."""
    async with asyncio.timeout(PAGE_PATIENCE / 1000):
        while not await condition():  # noqa: ASYNC110 - the browser is another process
            await asyncio.sleep(0.05)


class DemoServer(Server):
    """The demo, served by daphne.

    Args:
        folder: the folder for the database and the log.
        template: a prepared database, which is copied.
        variables: additional environment variables.
    """

    def __init__(self, folder: Path, template: Path, **variables: str) -> None:
        super().__init__("daphne", folder, template)
        self.environment = environment(self.database) | variables

    def _command(self) -> list[str]:
        options = ["-b", "127.0.0.1", "-p", str(self.port)]
        return [sys.executable, "-m", "daphne", *options, f"{PROJECT}.asgi:application"]

    def _answers(self) -> bool:
        return httpx.get(f"http://127.0.0.1:{self.port}/login/", **LOCAL).is_success


class Publisher:
    """A process that sends messages with the database of a server, even while the server is not running.

    Args:
        server: the server whose database the process uses.
    """

    def __init__(self, server: DemoServer) -> None:
        self._environment = server.environment
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", PROJECT],
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def call(self, name: str, *arguments: Any) -> Any:
        """Run a function of `calls` in project/__main__.py in the process, and return the function's result."""
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        async with self._lock:
            sink.write(json.dumps([name, arguments]).encode() + b"\n")
            await sink.drain()
            line = await source.readline()
        assert line, "the publisher has ended"
        return json.loads(line)

    async def make_room(self) -> str:
        """Create a room that no other test uses, and return its slug."""
        slug = f"room-{next(_numbers)}"
        await self.call("make_room", slug)
        return slug

    async def say(self, room: str, texts: Sequence[str]) -> None:
        """Send messages to a room, one after another."""
        for text in texts:
            await self.call("post", room, text)


class Window:
    """A window of the browser, which records the errors of its page.

    Args:
        page: the page.
        cuts: whether the test breaks connections on purpose. If so, Chromium may log errors about them.
    """

    def __init__(self, page: Page, *, cuts: bool) -> None:
        self.page = page
        self.cuts = cuts
        self.complaints: list[str] = []
        #: The URLs of HTTP requests for missed messages. Pages must not need them, because these tests' cuts are short.
        self.caught_up: list[str] = []
        #: The names of the commands that the page has sent, for example "subscribe", in order.
        self.sent: list[str] = []
        page.set_default_timeout(PAGE_PATIENCE)
        #: The number of pings that the page has received.
        self.pings = 0
        page.on("websocket", self._opened)
        page.on("console", self._heard)
        page.on("pageerror", self._failed)
        page.on("request", self._requested)

    def _opened(self, websocket: WebSocket) -> None:
        websocket.on("framesent", self._sent)
        websocket.on("framereceived", self._received)

    def __getitem__(self, test_id: str) -> Locator:
        return self.page.get_by_test_id(test_id)

    @property
    def texts(self) -> Locator:
        """The elements with the texts of the messages on the page."""
        return self["messages"].locator(".text")

    async def go(self, path: str) -> Response:
        """Open another page."""
        response = await self.page.goto(path)
        assert response is not None
        assert response.ok, f"{path}: HTTP {response.status}"
        return response

    async def receive_pings(self, count: int) -> None:
        """Wait until the page has received `count` more pings."""
        wanted = self.pings + count
        async with asyncio.timeout(PAGE_PATIENCE / 1000):
            while self.pings < wanted:  # noqa: ASYNC110 - the browser is another process
                await asyncio.sleep(0.05)

    async def state(self, state: str) -> None:
        """Wait until the page shows this state of its connection."""
        await expect(self["connection"]).to_have_attribute("data-state", state)

    async def subscribed(self) -> None:
        """Wait until the page of a room shows the members, which it does once its subscription is confirmed.

        A cut before the confirmation closes the channel, and the page then loads messages over HTTP.
        """
        await self.state("connected")
        await expect(self["members-panel"]).to_have_attribute("data-state", "known")

    async def disconnected(self) -> None:
        """Wait until the page shows that its connection is lost."""
        await expect(self["connection"]).not_to_have_attribute("data-state", "connected")

    async def back(self) -> None:
        """Report to the page that the network works again, as browsers do, and wait until it has reconnected."""

        async def is_back() -> bool:
            if await self["connection"].get_attribute("data-state") == "connected":
                return True
            await self.page.evaluate("window.dispatchEvent(new Event('online'))")
            return False

        await eventually(is_back)

    async def has_sent(self, *commands: str) -> None:
        """Wait until the page has sent these commands, in this order, and no others before or between them."""

        async def has_sent() -> bool:
            return self.sent[: len(commands)] == list(commands)  # the client repeats a subscribe after ten seconds

        await eventually(has_sent)

    async def shows(self, *texts: str) -> None:
        """Wait until the page has exactly these messages, in this order. Check that it received no message twice."""
        await expect(self.texts).to_have_text(list(texts))
        await expect(self["messages"]).to_have_attribute("data-repeats", "0")

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        if not (self.cuts and BROKEN_CONNECTION.match(message.text)):
            self.complaints.append(f"{message.type}: {message.text}")

    def _failed(self, error: Error) -> None:
        self.complaints.append(f"uncaught: {error}")

    def _sent(self, payload: str | bytes) -> None:
        self.sent.append(json.loads(payload)["command"])

    def _received(self, payload: str | bytes) -> None:
        if json.loads(payload).get("type") == "ping":
            self.pings += 1

    def _requested(self, request: Request) -> None:
        if "/messages/?after=" in request.url:
            self.caught_up.append(request.url)
