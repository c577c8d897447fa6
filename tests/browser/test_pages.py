"""Tests of the demo's pages: their content security policy, the login, and the examples for Action Cable."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.conftest import OpenWindow
from tests.support.faults import FaultProxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

BOXES = ("consumer", "classes", "extended", "signed", "public")
PAGES = ("/", "/rooms/lobby/", "/rooms/lobby/turbo/", "/rooms/lobby/htmx/", "/assistant/", "/migrations/")


async def test_each_example_receives_its_broadcast(open_window: OpenWindow) -> None:
    window = await open_window("alice", "/migrations/")
    for box in BOXES:
        await expect(window[f"box-{box}"]).to_have_attribute("data-state", "connected")
    for number, box in enumerate(BOXES):
        await window[f"broadcast-{box}"].click()
        await expect(window[f"received-{box}"].locator("li")).to_contain_text(["Hello from alice"])
        for other in BOXES[number + 1 :]:
            await expect(window[f"received-{other}"].locator("li")).to_have_count(0)
    await window["broadcast-all"].click()
    for box in BOXES:
        await expect(window[f"received-{box}"].locator("li")).to_contain_text(["Hello from alice"] * 2)


@pytest.mark.parametrize("box", ["consumer", "classes", "extended"])
async def test_an_example_with_a_state_shows_a_lost_connection(
    box: str, open_window: OpenWindow, proxy: FaultProxy
) -> None:
    window = await open_window("alice", "/migrations/", through=proxy, cuts=True)
    await expect(window[f"box-{box}"]).to_have_attribute("data-state", "connected")
    proxy.interrupt()
    await expect(window[f"box-{box}"]).to_have_attribute("data-state", "disconnected")


async def test_pages_redirect_other_users_to_the_login(open_window: OpenWindow) -> None:
    window = await open_window("", "/rooms/lobby/")
    await window["login-bob"].click()
    await window.state("connected")
    assert window.page.url.endswith("/rooms/lobby/")


async def test_pages_have_a_strict_policy_and_comply_with_it(open_window: OpenWindow) -> None:
    """Chromium logs violations of the policy as errors, and `open_window` fails if there are any."""
    guest = await open_window("", "/login/")
    alice = await open_window("alice", "/")
    for window, path in [(guest, "/login/"), *((alice, path) for path in PAGES)]:
        response = await window.go(path)
        policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert "unsafe" not in policy["script-src"] + policy["style-src"]
        loaded = await window.page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert {url.split("/")[2] for url in loaded} == {window.page.url.split("/")[2]}
