"""Tests of cuts: after 200 messages and five cuts, each of two windows has all messages, once and in order."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from playwright.async_api import expect

from tests.browser.conftest import OpenWindow
from tests.browser.demo import PAGE_PATIENCE, DemoServer, Publisher, Window, eventually
from tests.support.faults import FaultProxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

CUTS = 5
LINES = [f"Line {number} of 200" for number in range(1, 201)]
PER_CUT = len(LINES) // CUTS

Step = Callable[[], Awaitable[object]]


async def open_two(open_window: OpenWindow, room: str, **options: Any) -> list[Window]:
    """Open the windows of two users in a room, and wait until both have subscribed."""
    windows = [await open_window(user, f"/rooms/{room}/", **options) for user in ("alice", "bob")]
    for window in windows:
        await window.subscribed()
    return windows


async def check(windows: list[Window], publisher: Publisher, room: str, *, cut: Step, restore: Step) -> None:
    """Send the messages while the connections of the windows are cut and restored.

    Of every forty messages, twenty are sent around the time of the cut, ten while the connections are lost, and ten
    while they are being restored. At the end, every window has exactly the sent messages, and received them over the
    cable.
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
            assert await window.texts.count() < start + 30, (
                "no message was missed during the cut, so the test shows nothing"
            )
        talking = asyncio.create_task(publisher.say(room, lines[30:]))
        await restore()
        for window in windows:
            await window.back()
        await talking
        for window in windows:
            await expect(window.texts).to_have_count(start + PER_CUT)
    assert await publisher.call("messages", room) == LINES
    for window in windows:
        await window.shows(*LINES)
        assert window.caught_up == []


async def test_cut_by_the_button_on_the_page(open_window: OpenWindow, publisher: Publisher, room: str) -> None:
    windows = await open_two(open_window, room)

    async def cut() -> None:
        await asyncio.gather(*[window["cut"].click() for window in windows])

    async def restore() -> None:
        await asyncio.gather(*[window["restore"].click() for window in windows])

    await check(windows, publisher, room, cut=cut, restore=restore)


async def test_cut_by_the_kill_of_the_server(
    open_window: OpenWindow, server: DemoServer, publisher: Publisher, room: str
) -> None:
    windows = await open_two(open_window, room, cuts=True)

    kill, start = partial(asyncio.to_thread, server.kill), partial(asyncio.to_thread, server.start)
    await check(windows, publisher, room, cut=kill, restore=start)


async def test_cut_by_a_reset_of_the_network(
    open_window: OpenWindow, proxy: FaultProxy, publisher: Publisher, room: str
) -> None:
    windows = await open_two(open_window, room, through=proxy)

    async def reset() -> None:
        assert proxy.interrupt() >= len(windows)

    async def restore() -> None:
        proxy.accept()

    await check(windows, publisher, room, cut=reset, restore=restore)


async def test_cut_by_the_clients_own_disconnect(open_window: OpenWindow, publisher: Publisher, room: str) -> None:
    """Each page disconnects a second cable by the client's own method, as a page may do while it needs no connection.

    Later, the page connects this cable again.
    """
    windows = [await open_window(user, f"/rooms/{room}/") for user in ("alice", "bob")]
    for window in windows:
        await window.page.evaluate(
            """async () => {
                const own = window.own = {texts: [], offsets: [], troubles: []}
                own.cable = AnyCable.createCable({protocol: "actioncable-v1-ext-json"})
                const room_id = Number(document.querySelector("#room").dataset.roomId)
                own.channel = own.cable.subscribeTo("ChatChannel", {room_id})
                own.channel.on("message", ({text}, {offset}) => (own.texts.push(text), own.offsets.push(offset)))
                own.channel.on("info", ({type}) => type === "history_not_found" && own.troubles.push(type))
                own.channel.on("close", () => own.troubles.push("closed"))
                await own.channel.ensureSubscribed()
            }"""
        )

    for start in range(0, len(LINES), PER_CUT):
        lines = LINES[start : start + PER_CUT]
        talking = asyncio.create_task(publisher.say(room, lines[:20]))
        for window in windows:
            await window.page.evaluate("own.cable.disconnect()")
        await talking
        await publisher.say(room, lines[20:30])
        for window in windows:
            assert len(await window.page.evaluate("own.texts")) <= start + 20
        talking = asyncio.create_task(publisher.say(room, lines[30:]))
        for window in windows:
            # Wait for the subscription, because the client closes a channel permanently if the connection ends while
            # its subscribe is unanswered.
            await window.page.evaluate("own.cable.connect().then(() => own.channel.ensureSubscribed())")
        await talking

    for window in windows:
        # The page itself uses another cable, which was never cut. When it shows all lines, all messages have been sent.
        await window.shows(*LINES)
        await eventually(partial(window.page.evaluate, f"own.texts.length >= {len(LINES)}"))
        assert await window.page.evaluate("own.texts") == LINES
        assert await window.page.evaluate("own.offsets") == list(range(1, len(LINES) + 1))
        assert await window.page.evaluate("own.troubles") == []


async def test_cut_while_a_subscribe_is_unanswered(
    open_window: OpenWindow, server: DemoServer, proxy: FaultProxy, publisher: Publisher, room: str
) -> None:
    """The cut makes the client close the channel permanently. The page creates a new one and misses no message."""
    window = await open_window("alice", f"/rooms/{room}/", through=proxy)
    other = await open_window("bob", f"/rooms/{room}/", cuts=True)
    await window.subscribed()
    await publisher.say(room, LINES[:50])
    await window.shows(*LINES[:50])

    # The sessions are deleted, so the subscription is not restored, and the channel subscribes again.
    await asyncio.to_thread(server.kill)
    with contextlib.closing(sqlite3.connect(server.database)) as database, database:
        database.execute("DELETE FROM reliable_cable_session")
    await window.disconnected()
    proxy.withhold()
    await publisher.say(room, LINES[50:80])
    await asyncio.to_thread(server.start)
    await window.back()
    await asyncio.wait_for(proxy.withheld.wait(), PAGE_PATIENCE / 1000)
    await window.has_sent("subscribe", "presence", "subscribe")
    talking = asyncio.create_task(publisher.say(room, LINES[80:]))
    proxy.interrupt()
    await window.disconnected()
    assert await window.texts.count() == 50
    proxy.accept()
    await window.back()
    await talking

    await window.shows(*LINES)
    await other.back()
    await other.shows(*LINES)


async def test_cut_before_the_first_subscribe_is_answered(
    open_window: OpenWindow, proxy: FaultProxy, publisher: Publisher, room: str
) -> None:
    """The channel of the first subscribe has no position from which it could continue."""
    await publisher.say(room, LINES[:20])
    proxy.withhold()
    window = await open_window("alice", f"/rooms/{room}/", through=proxy)
    await asyncio.wait_for(proxy.withheld.wait(), PAGE_PATIENCE / 1000)
    await window.has_sent("subscribe")
    await publisher.say(room, LINES[20:40])  # only a few, because the client waits for an answer for only 10 s
    proxy.interrupt()
    await window.disconnected()
    talking = asyncio.create_task(publisher.say(room, LINES[40:]))
    proxy.accept()
    await window.back()
    await talking
    await window.shows(*LINES)
