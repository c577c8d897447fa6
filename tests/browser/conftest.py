"""The fixtures of the browser tests. All tests share one browser, server and publisher; each has its own room."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, StorageState, async_playwright

from reliable_cable.client.build import build, is_fresh
from tests.browser.demo import DemoServer, Publisher, Window, prepare
from tests.support.faults import FaultProxy

session_fixture = pytest_asyncio.fixture(scope="session", loop_scope="session")
fixture = pytest_asyncio.fixture(loop_scope="session")

#: The programs to look for, in this order. The whole browser also draws its own windows, even if it is headless. So a
#: new browser context takes eight times as much CPU time there as in the headless shell.
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing(what: str) -> Any:
    """Skip the test, or fail it if `CABLE_REQUIRE` says that no dependency may be missing."""
    if os.environ.get("CABLE_REQUIRE") == "1":
        pytest.fail(f"{what} is missing, and CABLE_REQUIRE=1 wants it.")
    pytest.skip(f"{what} is missing.")


@session_fixture
async def chromium() -> AsyncIterator[Browser]:
    """The browser of all tests."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        missing("Chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def bundle() -> None:
    """The bundle of the client in the static files."""
    if not is_fresh() and not (shutil.which("node") and shutil.which("npm")):
        missing("Node")
    build()


@pytest.fixture(scope="session")
def prepared(bundle: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of the demo, as `manage.py demo` prepares it."""
    path = tmp_path_factory.mktemp("demo") / "prepared.sqlite3"
    prepare(path)
    return path


@pytest.fixture(scope="session")
def shared_server(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The server of all tests."""
    with DemoServer(tmp_path_factory.mktemp("server"), prepared) as server:
        yield server


@pytest.fixture
def server(shared_server: DemoServer) -> DemoServer:
    """The running server. It is started again if the previous test killed it."""
    if not shared_server.alive:
        shared_server.start()
    return shared_server


@session_fixture
async def publisher(shared_server: DemoServer) -> AsyncIterator[Publisher]:
    """A process other than the server, which sends messages."""
    async with Publisher(shared_server) as process:
        yield process


@fixture
async def room(publisher: Publisher) -> str:
    """The slug of an empty room."""
    return await publisher.make_room()


@fixture
async def proxy(server: DemoServer) -> AsyncIterator[FaultProxy]:
    """A proxy of the server whose connections a test can cut."""
    async with FaultProxy(server.port) as between:
        yield between


@session_fixture
async def log_in(chromium: Browser, shared_server: DemoServer) -> Callable[[str], Awaitable[StorageState]]:
    """Return a function that logs a user in with a button of the login page, and returns the browser's storage.

    It logs each user in only once.
    """
    states: dict[str, StorageState] = {}

    async def log_in(user: str) -> StorageState:
        if user not in states:
            context = await chromium.new_context()
            page = await context.new_page()
            await page.goto(f"http://127.0.0.1:{shared_server.port}/login/")
            await page.get_by_test_id(f"login-{user}").click()
            await page.wait_for_url(f"http://127.0.0.1:{shared_server.port}/")
            states[user] = await context.storage_state()
            await context.close()
        return states[user]

    return log_in


class OpenWindow(Protocol):
    """Opens a window with its own cookies."""

    async def __call__(
        self,
        user: str,
        path: str,
        *,
        through: FaultProxy | DemoServer | None = None,
        cuts: bool = False,
        phone: tuple[int, int] | None = None,
    ) -> Window:
        """Open a page.

        Args:
            user: the user to log in; empty: no user.
            path: the path of the page.
            through: a proxy of the server, or another server.
            cuts: whether the test breaks connections on purpose.
            phone: the width and height, in CSS pixels, of a phone; None: the window is that of a desktop.
        """
        ...


@fixture
async def open_window(
    chromium: Browser, server: DemoServer, log_in: Callable[[str], Awaitable[StorageState]]
) -> AsyncIterator[OpenWindow]:
    """Yield a function that opens windows. At the end of the test, check that their pages have logged no errors."""
    windows: list[Window] = []
    contexts: list[BrowserContext] = []

    async def open_window(
        user: str,
        path: str,
        *,
        through: FaultProxy | DemoServer | None = None,
        cuts: bool = False,
        phone: tuple[int, int] | None = None,
    ) -> Window:
        width, height = phone or (1280, 800)
        port = through.port if through else server.port
        context = await chromium.new_context(
            base_url=f"http://127.0.0.1:{port}",
            storage_state=await log_in(user) if user else None,
            reduced_motion="reduce",
            viewport={"width": width, "height": height},
            is_mobile=phone is not None,
            has_touch=phone is not None,
        )
        contexts.append(context)
        window = Window(await context.new_page(), cuts=cuts or through is not None)
        windows.append(window)
        await window.go(path)
        return window

    yield open_window
    for context in contexts:
        await context.close()
    assert [complaint for window in windows for complaint in window.complaints] == []
