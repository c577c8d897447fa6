"""The example page of `manage.py cable_setup` in Chromium, in a project as `startproject` makes it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.browser.conftest import fixture
from tests.browser.demo import PAGE_PATIENCE
from tests.support.layouts import stock
from tests.support.projects import ProjectServer

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture(scope="module")
def project_server(tmp_path_factory: pytest.TempPathFactory, bundle: None) -> Iterator[ProjectServer]:
    """The server of a project in which the commands of README.md were run."""
    folder = tmp_path_factory.mktemp("setup")
    project = stock(folder / "project", Path(sys.executable))
    project.set_up("--yes")
    project.manage("migrate", "--verbosity", "0")
    with ProjectServer(project, folder) as server:
        yield server


@pytest.fixture
def server(project_server: ProjectServer) -> ProjectServer:
    """The running server of the project."""
    if not project_server.alive:
        project_server.start()
    return project_server


@fixture
async def windows(chromium: Browser, server: ProjectServer) -> AsyncIterator[list[Page]]:
    """Two windows that show the page, each with its own cookies. Their pages may log no errors."""
    complaints: list[str] = []
    contexts = [await chromium.new_context(base_url=f"http://127.0.0.1:{server.port}") for _ in range(2)]
    pages = [await context.new_page() for context in contexts]
    for page in pages:
        page.set_default_timeout(PAGE_PATIENCE)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto("/cable-example/")
        await expect(page.locator("#state")).to_have_text("Connected")
    yield pages
    for context in contexts:
        await context.close()
    assert complaints == []


async def test_a_message_arrives_live_and_stays_after_a_reload(windows: list[Page]) -> None:
    writer, reader = windows
    for text in ("Hello", "<b>you</b>"):
        await writer.locator("input[name=text]").fill(text)
        await writer.get_by_role("button", name="Send").click()
        for page in windows:
            await expect(page.locator("#messages li", has_text=text)).to_have_count(1)
        await expect(writer.locator("input[name=text]")).to_have_value("")
    await reader.reload()
    await expect(reader.locator("#state")).to_have_text("Connected")
    await expect(reader.locator("#messages li")).to_have_text(["Hello", "<b>you</b>"])


async def test_the_page_shows_a_lost_connection_and_its_return(windows: list[Page], server: ProjectServer) -> None:
    state = windows[0].locator("#state")
    await server.terminate()
    await expect(state).to_have_text("Disconnected")
    await server.restart()
    await expect(state).to_have_text("Connected")
