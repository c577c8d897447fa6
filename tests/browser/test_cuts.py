"""Two windows, 200 messages, and a connection that is cut five times: each window ends with exactly the 200, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from playwright.async_api import expect

from tests.browser.conftest import OpenWindow
from tests.browser.demo import PAGE_PATIENCE, DemoServer, Publisher, Window
from tests.browser.proxy import TcpProxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

CUTS = 5
LINES = [f"Line {number} of 200" for number in range(1, 201)]
PER_CUT = len(LINES) // CUTS

Step = Callable[[], Awaitable[object]]


async def run(windows: list[Window], publisher: Publisher, room: str, *, cut: Step, restore: Step) -> None:
    """Say the lines, and cut and restore the connection while they are being said.

    Of each forty, the cut falls into the first twenty, ten are said while it lasts, and the restoring falls into the last ten.
    """
    for start in range(0, len(LINES), PER_CUT):
        lines = LINES[start : start + PER_CUT]
        await publisher.say(room, lines[:5])
        talking = asyncio.create_task(publisher.say(room, lines[5:20]))
        await cut()
        for window in windows:
            await window.disconnected()
        await talking
        await publisher.say(room, lines[20:30])
        for window in windows:
            assert await window.texts.count() < start + 30, "nothing was missed, so the cut proves nothing"
        talking = asyncio.create_task(publisher.say(room, lines[30:]))
        await restore()
        for window in windows:
            await window.back()
        await talking
        for window in windows:
            await expect(window.texts).to_have_count(start + PER_CUT, timeout=PAGE_PATIENCE)


async def finish(windows: list[Window], publisher: Publisher, room: str) -> None:
    """Every window has exactly what was said, and had it over the cable."""
    assert await publisher.call("messages", room) == LINES
    for window in windows:
        await window.shows(*LINES)
        assert window.caught_up == []


async def test_cut_by_the_button_on_the_page(open_window: OpenWindow, publisher: Publisher, room: str) -> None:
    windows = [await open_window(user, f"/rooms/{room}/") for user in ("alice", "bob")]
    for window in windows:
        await window.state("connected")

    async def cut() -> None:
        await asyncio.gather(*[window["cut"].click() for window in windows])

    async def restore() -> None:
        await asyncio.gather(*[window["restore"].click() for window in windows])

    await run(windows, publisher, room, cut=cut, restore=restore)
    await finish(windows, publisher, room)


async def test_cut_by_the_kill_of_the_server(
    open_window: OpenWindow, server: DemoServer, publisher: Publisher, room: str
) -> None:
    windows = [await open_window(user, f"/rooms/{room}/", cuts=True) for user in ("alice", "bob")]
    for window in windows:
        await window.state("connected")

    async def kill() -> None:
        await asyncio.to_thread(server.kill)

    async def start() -> None:
        await asyncio.to_thread(server.start)

    await run(windows, publisher, room, cut=kill, restore=start)
    await finish(windows, publisher, room)


async def test_cut_by_a_reset_of_the_network(
    open_window: OpenWindow, proxy: TcpProxy, publisher: Publisher, room: str
) -> None:
    windows = [await open_window(user, f"/rooms/{room}/", through=proxy) for user in ("alice", "bob")]
    for window in windows:
        await window.state("connected")

    async def reset() -> None:
        assert proxy.cut() >= len(windows)

    async def restore() -> None:
        proxy.restore()

    await run(windows, publisher, room, cut=reset, restore=restore)
    await finish(windows, publisher, room)
