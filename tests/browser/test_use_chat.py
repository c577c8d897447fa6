"""The unmodified `useChat` of `@ai-sdk/react` reads, resumes and stops runs, while servers are killed."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, BrowserContext, Locator, Page, Route, expect

from tests.browser.conftest import fixture
from tests.browser.demo import eventually
from tests.node import FOLDER, node_modules, require_node
from tests.support.client import unique
from tests.support.server import OtherProcess, Server, make_database
from tests.unit.test_docs import BLOCKS

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

USER = "ann"
RUNS = {"RUN_CHATS": "tests.integration.project.runs.Chats"}


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of the page, in one file. It contains the example `use_conversation.js` of docs/llm.md."""
    node = require_node()
    node_modules()
    folder = tmp_path_factory.mktemp("chat")
    path, hook = folder / "chat_page.js", folder / "use_conversation.js"
    (block,) = [block.text for block in BLOCKS if block.text.startswith("// use_conversation.js")]
    hook.write_text(block)
    command = [node, "bundle_chat_page.mjs", str(path), str(hook)]
    subprocess.run(command, cwd=FOLDER, check=True, timeout=60)
    return path


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def running(request: pytest.FixtureRequest, script: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a page that uses `useChat`."""
    folder = tmp_path_factory.mktemp("use_chat")
    database = make_database(folder)
    with Server(request.param, folder, database, RUNS, CABLE_TEST_CHAT_PAGE=str(script)) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """The server, which is started again if the previous test killed it."""
    if not running.alive:
        running.start()
    return running


@pytest.fixture(scope="module")
def writer(running: Server) -> Iterator[OtherProcess]:
    """A process that writes runs. It lives longer than the server."""
    with OtherProcess(running) as process:
        yield process


@fixture
async def device(chromium: Browser, server: Server) -> AsyncIterator[BrowserContext]:
    """A browser in which the user is logged in."""
    context = await log_in(chromium, server)
    yield context
    await context.close()


@fixture
async def chat(writer: OtherProcess) -> str:
    """The id of a new chat."""
    name = unique(f"{USER}-")
    await writer.call("make_chat", name)
    return name


async def log_in(chromium: Browser, server: Server) -> BrowserContext:
    context = await chromium.new_context()
    response = await context.request.post(f"http://127.0.0.1:{server.port}/sign-in", form={"username": USER})
    assert response.ok
    return context


class Window:
    """A page with the chat."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.state = page.get_by_test_id("page")
        self.answers = page.locator("[data-role=assistant]")

    async def click(self, name: str) -> None:
        await self.page.get_by_test_id(name).click()

    async def is_status(self, status: str) -> None:
        await expect(self.state).to_have_attribute("data-status", status)

    @property
    def text(self) -> Locator:
        """The element with the text of the only answer."""
        return self.answers.locator("[data-part=text]")

    async def has(self, text: str) -> None:
        """Wait until the page shows exactly one answer, and this text in it."""
        await expect(self.text).to_have_text([text])
        await expect(self.answers).to_have_count(1)

    async def is_complete(self, text: str) -> None:
        """Wait until the answer has ended with this text, and check its source and its usage."""
        await self.is_status("ready")
        await self.has(text)
        await expect(self.answers.locator("[data-part=source-url]")).to_have_attribute("href", "https://example.com/")
        usage = await self.answers.get_attribute("data-usage")
        assert json.loads(usage or "") == {"status": "completed", "usage": {"output_tokens": 3}}


async def open_window(context: BrowserContext, server: Server, chat: str) -> Window:
    """Open the page, and wait until `useChat` knows whether there is an answer to resume.

    If the user asks before that, `useChat` says "ready" instead of "submitted" until the answer begins.
    """
    page = await context.new_page()
    async with page.expect_response(lambda response: urlsplit(response.url).path.endswith(f"/{chat}/stream")):
        await page.goto(f"http://127.0.0.1:{server.port}/chat-page/{chat}")
    return Window(page)


class Run:
    """A run that another process writes when the test calls these methods."""

    def __init__(self, writer: OtherProcess, chat: str) -> None:
        self._writer = writer
        self._chat = chat
        self.id = ""

    async def begin(self, text: str) -> None:
        """Wait until the run has been started, and write its first text."""

        async def found() -> bool:
            self.id = await self._writer.call("open_run", self._chat)
            return bool(self.id)

        await eventually(found)
        await self.write(text)

    async def write(self, text: str) -> None:
        await self._writer.call("write_to_run", self.id, text)

    async def end(self) -> None:
        await self._writer.call("close_run", self.id)

    async def status(self) -> str:
        run = await self._writer.call("read_run", self.id)
        return str(run["status"])


@fixture
async def run(writer: OtherProcess, chat: str) -> Run:
    return Run(writer, chat)


async def ask(device: BrowserContext, server: Server, chat: str, run: Run) -> Window:
    """Open the page, ask a question, and wait until the page has the first text of the answer, "Be"."""
    window = await open_window(device, server, chat)
    await window.click("ask")
    await run.begin("Be")
    await window.has("Be")
    return window


async def test_an_answer_is_streamed(device: BrowserContext, server: Server, chat: str, run: Run) -> None:
    window = await ask(device, server, chat, run)
    await window.is_status("streaming")
    await run.write("cause")
    await window.has("Because")
    await run.end()
    await window.is_complete("Because")
    # After a reload, the page shows the saved message, which is the same.
    await window.page.reload()
    await window.is_complete("Because")


async def test_a_reload_in_the_middle(device: BrowserContext, server: Server, chat: str, run: Run) -> None:
    window = await ask(device, server, chat, run)
    for text in ("cau", "se"):
        await window.page.reload()
        await window.is_status("streaming")
        await run.write(text)
    await window.has("Because")
    await run.end()
    await window.is_complete("Because")


async def test_a_second_device_and_a_second_tab(
    chromium: Browser, device: BrowserContext, server: Server, chat: str, run: Run
) -> None:
    first = await open_window(device, server, chat)
    await first.click("ask")
    await run.begin("Be")
    await first.has("Be")
    other = await log_in(chromium, server)
    windows = [first, await open_window(device, server, chat), await open_window(other, server, chat)]
    for window in windows:
        await window.has("Be")
    await run.write("cause")
    for window in windows:
        await window.has("Because")
    # The first tab is closed, and the other tabs go on.
    await first.page.close()
    await run.write(".")
    await run.end()
    for window in windows[1:]:
        await window.is_complete("Because.")
    await other.close()


async def test_a_stop_after_a_resume(device: BrowserContext, server: Server, chat: str, run: Run) -> None:
    window = await ask(device, server, chat, run)
    await window.page.reload()
    await window.has("Be")
    other = await open_window(device, server, chat)
    await other.has("Be")
    # The button of `useChat` only closes the request.
    await other.click("leave")
    await other.is_status("ready")
    assert await run.status() == "running"
    await window.click("stop")
    await window.click("stop")

    async def refused() -> bool:
        try:
            await run.write("")
        except Exception:
            return True
        return False

    await eventually(refused)
    await run.end()
    await window.is_status("ready")
    await window.has("Be")
    assert await run.status() == "stopped"


@pytest.mark.parametrize("reload", [True, False])
async def test_a_server_that_is_killed_and_restarted(
    device: BrowserContext, server: Server, chat: str, run: Run, reload: bool
) -> None:
    window = await ask(device, server, chat, run)
    server.kill()
    await window.is_status("error")
    await window.has("Be")
    await run.write("cau")
    server.start()
    if reload:
        await window.page.reload()
    else:
        await window.click("resume")
    await window.has("Becau")
    await run.write("se")
    await window.has("Because")
    await run.end()
    await window.is_complete("Because")


async def test_an_answer_that_ends_while_the_page_is_loaded(
    device: BrowserContext, server: Server, chat: str, run: Run
) -> None:
    window = await ask(device, server, chat, run)
    page = await device.new_page()
    requests: asyncio.Queue[Route] = asyncio.Queue()
    await page.route("**/stream*", requests.put)
    await page.goto(f"http://127.0.0.1:{server.port}/chat-page/{chat}")
    request = await requests.get()
    late = Window(page)
    await run.write("cause")
    await run.end()
    await window.is_complete("Because")
    await request.continue_()
    await late.is_complete("Because")
    # A page that is loaded with the whole answer requests the stream without `?ended`. No run is active, so the
    # response is 204.
    async with page.expect_response(lambda response: urlsplit(response.url).path.endswith("/stream")) as resumed:
        await page.unroute("**/stream*")
        await page.reload()
    assert (await resumed.value).status == 204
    await late.is_complete("Because")


async def test_an_answer_that_ends_while_the_connection_is_lost(
    device: BrowserContext, server: Server, chat: str, run: Run
) -> None:
    window = await ask(device, server, chat, run)
    server.kill()
    await window.is_status("error")
    await run.write("cause")
    await run.end()
    server.start()
    await window.click("resume")
    await window.is_complete("Because")


async def test_a_server_that_is_stopped_and_restarted(
    device: BrowserContext, server: Server, chat: str, run: Run
) -> None:
    window = await ask(device, server, chat, run)
    await server.terminate()
    await window.is_status("error")
    await run.write("cause")
    server.start()
    await window.click("resume")
    await window.has("Because")
    await run.end()
    await window.is_complete("Because")


async def test_a_second_question_during_an_answer(device: BrowserContext, server: Server, chat: str, run: Run) -> None:
    window = await ask(device, server, chat, run)
    other = await open_window(device, server, chat)
    await other.has("Be")
    await other.click("leave")
    await other.is_status("ready")
    await other.click("ask")
    await other.is_status("error")
    await expect(other.state).to_have_attribute("data-error", re.compile("already has an answer in progress"))
    await run.end()
    await window.is_complete("Be")
