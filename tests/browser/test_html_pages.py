"""Tests of the pages whose messages are HTML: cuts of the connection lose nothing and repeat nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from playwright.async_api import Route, expect

from tests.browser.conftest import OpenWindow
from tests.browser.demo import PAGE_PATIENCE, DemoServer, Publisher, Window
from tests.support.faults import FaultProxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

CUTS = 2
PER_CUT = 20
LINES = [f"Line {number} <b>" for number in range(CUTS * PER_CUT)]

Step = Callable[[], Awaitable[object]]


async def run(window: Window, publisher: Publisher, room: str, *, cut: Step, restore: Step) -> None:
    """Send the messages while the connection is cut and restored.

    Of every twenty messages, ten are sent around the time of the cut, five while the connection is lost, and five while
    it is being restored.
    """
    for start in range(0, len(LINES), PER_CUT):
        lines = LINES[start : start + PER_CUT]
        talking = asyncio.create_task(publisher.say(room, lines[:10]))
        await expect(window.texts).not_to_have_count(start)
        await cut()
        await window.disconnected()
        await talking
        await publisher.say(room, lines[10:15])
        assert await window.texts.count() < start + 15, "no message was missed, so the test shows nothing"
        talking = asyncio.create_task(publisher.say(room, lines[15:]))
        await restore()
        await window.back()
        await talking
        await expect(window.texts).to_have_text(LINES[: start + PER_CUT])


async def run_with_resets(window: Window, publisher: Publisher, room: str, proxy: FaultProxy) -> None:
    """Send the messages while a proxy resets the connection."""

    async def cut() -> None:
        assert proxy.interrupt()

    async def restore() -> None:
        proxy.accept()

    await run(window, publisher, room, cut=cut, restore=restore)


async def test_turbo_after_resets_of_the_network(
    open_window: OpenWindow, proxy: FaultProxy, publisher: Publisher, room: str
) -> None:
    window = await open_window("alice", f"/rooms/{room}/turbo/", through=proxy)
    await expect(window.page.locator("turbo-cable-stream-source[connected]")).to_have_count(1)
    # Turbo would hide a repeated message, because its element has the same id.
    await window.page.evaluate(
        "window.rendered = 0; document.addEventListener('turbo:before-stream-render', () => rendered++)"
    )

    await run_with_resets(window, publisher, room, proxy)
    assert await window.page.evaluate("rendered") == len(LINES)


async def test_turbo_subscribes_again_if_a_subscribe_was_unanswered(
    open_window: OpenWindow, proxy: FaultProxy, publisher: Publisher, room: str
) -> None:
    proxy.withhold()
    window = await open_window("alice", f"/rooms/{room}/turbo/", through=proxy)
    await asyncio.wait_for(proxy.withheld.wait(), PAGE_PATIENCE / 1000)
    proxy.interrupt()
    await window.disconnected()
    await publisher.say(room, LINES[:5])
    proxy.accept()
    await window.back()
    await expect(window.texts).to_have_text(LINES[:5])


async def test_turbo_drive_shows_what_arrived_during_a_visit(
    open_window: OpenWindow, publisher: Publisher, room: str
) -> None:
    window = await open_window("alice", f"/rooms/{room}/turbo/", cuts=True)
    connected = window.page.locator("turbo-cable-stream-source[connected]")
    await expect(connected).to_have_count(1)
    # The demo does not use Turbo Drive, so enable it.
    await window.page.evaluate(
        """async () => {
          const Turbo = await import("@hotwired/turbo")
          Turbo.session.drive = true
          window.rendered = (go) => new Promise((done) => {
            document.addEventListener("turbo:render", () => done(), {once: true})
            go()
          })
          window.visit = (url) => rendered(() => Turbo.visit(url))
        }"""
    )
    shown = 0

    async def during_the_visit(route: Route) -> None:
        nonlocal shown
        response = await route.fetch()
        await publisher.say(room, LINES[shown : shown + 2])
        shown += 2
        await expect(window.texts).to_have_text(LINES[:shown])
        # Without the position in the page, the client would request only what came since its last ping. After two more
        # pings, these lines are older than that.
        if shown == 2:
            await window.receive_pings(2)
        await route.fulfill(response=response)

    await window.page.route("**/turbo/?visit=*", during_the_visit)
    for number in range(2):
        await window.page.evaluate("visit", f"/rooms/{room}/turbo/?visit={number}")
        await expect(window.texts).to_have_text(LINES[:shown])
        await expect(connected).to_have_count(1)
    # `history.back()` shows Turbo's cached copy of the previous page, which lacks the messages that are sent now.
    await publisher.say(room, LINES[shown : shown + 2])
    await expect(window.texts).to_have_text(LINES[: shown + 2])
    await window.page.evaluate("rendered(() => history.back())")
    assert window.page.url.endswith("?visit=0")
    await expect(window.texts).to_have_text(LINES[: shown + 2])


async def test_htmx_after_kills_of_the_server(
    open_window: OpenWindow, server: DemoServer, publisher: Publisher, room: str
) -> None:
    window = await open_window("alice", f"/rooms/{room}/htmx/", cuts=True)
    await window.state("connected")

    kill, start = partial(asyncio.to_thread, server.kill), partial(asyncio.to_thread, server.start)
    await run(window, publisher, room, cut=kill, restore=start)
    await expect(window["count"]).to_have_text(f"{len(LINES)} messages")


async def test_htmx_resumes_each_url_after_its_own_last_event(
    open_window: OpenWindow, publisher: Publisher, room: str
) -> None:
    window = await open_window("alice", f"/rooms/{room}/htmx/")
    await window.state("connected")
    await publisher.say(room, LINES[:1])
    await expect(window.texts).to_have_text(LINES[:1])
    own, other = await window.page.evaluate(
        """() => {
          const own = document.querySelector("[sse-connect]").getAttribute("sse-connect")
          return [own, "/events?stream=other"].map((url) => {
            const source = htmx.createEventSource(url)
            source.close()
            return source.url
          })
        }"""
    )
    assert "last_event_id=" in own
    assert "last_event_id=" not in other


async def test_htmx_4_after_resets_of_the_network(
    open_window: OpenWindow, proxy: FaultProxy, publisher: Publisher, room: str
) -> None:
    window = await open_window("alice", f"/rooms/{room}/htmx4/", through=proxy)
    await window.state("connected")

    await run_with_resets(window, publisher, room, proxy)
    await expect(window["count"]).to_have_text(f"{len(LINES)} messages")


@pytest.mark.parametrize("page", ["turbo", "htmx", "htmx4"])
async def test_messages_of_the_second_of_the_request_are_shown_once(
    page: str, open_window: OpenWindow, publisher: Publisher, room: str
) -> None:
    await publisher.say(room, LINES[:5])
    window = await open_window("alice", f"/rooms/{room}/{page}/")
    await publisher.say(room, LINES[5:10])
    await window.state("connected")
    await publisher.say(room, LINES[10:12])
    await expect(window.texts).to_have_text(LINES[:12])


async def test_a_message_of_the_form_is_shown_once_on_each_kind_of_page(open_window: OpenWindow, room: str) -> None:
    pages = [await open_window("alice", f"/rooms/{room}/{path}") for path in ("", "turbo/", "htmx/", "htmx4/")]
    for page in pages:
        await page.state("connected")
    sent = []
    for number, page in enumerate(pages):
        sent.append(f"<i>Hello</i> {number}")
        await page["text"].fill(sent[-1])
        await page["send"].click()
        for shown in pages:
            await expect(shown.texts).to_have_text(sent)
        await expect(page["text"]).to_have_value("")
