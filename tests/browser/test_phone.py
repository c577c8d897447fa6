"""Tests of the demo on phones: its layout, the size of controls, the members while offline, and the error pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Locator, expect

from tests.browser.conftest import OpenWindow
from tests.browser.demo import DemoServer, Publisher, Window, eventually
from tests.support.faults import FaultProxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

#: The width and height, in CSS pixels, of phones. The last one is held sideways.
PHONES = ((360, 640), (740, 360))
PAGES = ("/", "/rooms/lobby/", "/rooms/lobby/turbo/", "/rooms/lobby/htmx/", "/assistant/", "/migrations/")
#: The minimum width and height of links and controls, in CSS pixels.
TARGET = 44

#: A JavaScript function that returns the visible elements that can be tapped, with their sizes.
TARGETS = """() => [...document.querySelectorAll("a, button, input, select, textarea, summary")]
  .filter((each) => each.type !== "hidden" && !each.matches(".skip") && each.checkVisibility())
  .map((each) => [each.outerHTML.slice(0, 80), each.offsetWidth, each.offsetHeight])"""

#: A JavaScript function that returns the visible elements that extend beyond the sides of the screen, or that cut off
#: content which is wider than they are.
CUT_OFF = """(width) => [...document.querySelectorAll("body, body *:not(.hidden, .skip, .hidden *)")]
  .filter((each) => each.checkVisibility())
  .filter((each) => {
    const { left, right } = each.getBoundingClientRect();
    const clips = getComputedStyle(each).overflowX !== "visible" && each.scrollWidth > each.clientWidth;
    return clips || left < 0 || right > width;
  })
  .map((each) => each.outerHTML.slice(0, 80))"""

phones = pytest.mark.parametrize("phone", PHONES, ids=lambda phone: f"{phone[0]}x{phone[1]}")


async def check_layout(window: Window, phone: tuple[int, int]) -> None:
    """Check that links and controls are large enough to be tapped, and that nothing is cut off at the sides."""
    targets = await window.page.evaluate(TARGETS)
    assert targets
    assert [target for target in targets if min(target[1:]) < TARGET] == []
    assert await window.page.evaluate(CUT_OFF, phone[0]) == []


async def top(locator: Locator) -> float:
    """Return the distance from the top of the screen to the top of an element, in CSS pixels."""
    return float(await locator.evaluate("(each) => each.getBoundingClientRect().top"))


async def bottom(locator: Locator) -> float:
    """Return the distance from the top of the screen to the bottom of an element, in CSS pixels."""
    return float(await locator.evaluate("(each) => each.getBoundingClientRect().bottom"))


@phones
async def test_pages_fit_and_can_be_tapped(open_window: OpenWindow, phone: tuple[int, int]) -> None:
    guest = await open_window("", "/login/", phone=phone)
    await guest.page.locator("summary").tap()
    await check_layout(guest, phone)
    alice = await open_window("alice", "/", phone=phone)
    for path in PAGES:
        await alice.go(path)
        await check_layout(alice, phone)


@phones
async def test_a_room_fits_and_can_be_tapped(
    open_window: OpenWindow, publisher: Publisher, room: str, phone: tuple[int, int]
) -> None:
    window = await open_window("alice", f"/rooms/{room}/", phone=phone)
    await window.state("connected")
    await publisher.say(room, ["A word that is not short: " + "r" * 120, *map(str, range(30))])
    await expect(window.texts).to_have_count(31)
    for name in ("rooms", "members", "try"):
        await window[f"{name}-panel"].locator("summary").tap()
        await expect(window.page.locator(".panel[open]")).to_have_count(1)
        await check_layout(window, phone)
    await window["try-panel"].locator("summary").tap()
    for control in ("text", "send", "cut", "logout"):
        await expect(window[control]).to_be_in_viewport(ratio=1)

    # While the log is not scrolled to its end, new messages are announced by a button that scrolls to them.
    await window["log"].evaluate("(log) => log.scrollTo(0, 0)")
    await publisher.say(room, ["new"])
    await window["latest"].wait_for()
    await check_layout(window, phone)
    await window["latest"].tap()
    await expect(window.texts.last).to_be_in_viewport(ratio=1)


async def test_the_page_says_who_is_logged_in_and_lets_the_user_change(open_window: OpenWindow) -> None:
    window = await open_window("", "/login/", phone=PHONES[0])
    for user in ("carol", "dave"):
        await window[f"login-{user}"].tap()
        await expect(window["username"]).to_have_text(user)
        await expect(window["username"]).to_be_in_viewport(ratio=1)
        await window["logout"].tap()


async def test_a_room_leads_to_the_other_rooms(open_window: OpenWindow, room: str) -> None:
    window = await open_window("alice", f"/rooms/{room}/", phone=PHONES[0])
    await window["rooms-panel"].locator("summary").tap()
    await window["rooms-panel"].get_by_role("link", name="Lobby").tap()
    await expect(window.page).to_have_url(re.compile("/rooms/lobby/$"))
    await expect(window["log"]).to_be_visible()


@phones
async def test_the_notice_does_not_cover_the_last_message(
    open_window: OpenWindow, publisher: Publisher, room: str, phone: tuple[int, int]
) -> None:
    window = await open_window("alice", f"/rooms/{room}/", phone=phone, cuts=True)
    await window.state("connected")
    await publisher.say(room, [str(number) for number in range(30)])
    await expect(window.texts).to_have_count(30)
    for count in (31, 32, 33):
        await window["cut"].tap()
        await window.state("offline")
        await publisher.say(room, [f"missed {count}"])
        await window["restore"].tap()
        await expect(window.texts).to_have_count(count)
        await expect(window["notice"]).to_contain_text("1 missed message")

        async def is_uncovered() -> bool:
            # On a busy machine, the notice may already have been hidden.
            await window["notice"].evaluate("(notice) => (notice.hidden = false)")
            return await bottom(window.texts.last) <= await top(window["notice"])

        await eventually(is_uncovered)


async def test_messages_that_wait_do_not_push_the_form_away(open_window: OpenWindow, room: str) -> None:
    window = await open_window("alice", f"/rooms/{room}/", phone=PHONES[0], cuts=True)
    await window.state("connected")
    await window["cut"].tap()
    await window.state("offline")
    for number in range(20):
        await window["text"].fill(f"Message {number}")
        await window["send"].tap()
    await expect(window["pending"].locator("li")).to_have_count(20)
    await expect(window["pending"].locator("li").last).to_be_in_viewport(ratio=1)
    await expect(window["send"]).to_be_in_viewport(ratio=1)


async def test_members_are_unknown_while_the_connection_is_lost(
    open_window: OpenWindow, proxy: FaultProxy, room: str
) -> None:
    window = await open_window("alice", f"/rooms/{room}/", through=proxy, phone=PHONES[0])
    await window["members-panel"].locator("summary").tap()
    member, count = window["members"].locator("li"), window["member-count"]
    hint = window["members-panel"].get_by_text("Unknown")

    async def colors() -> list[str]:
        """Return the colors of the dot in front of the member, and of the count."""
        color = "(each, part) => getComputedStyle(each, part).backgroundColor"
        return [await member.evaluate(color, "::before"), await count.evaluate(color)]

    await expect(member).to_have_text("alice (you)")
    await expect(count).to_have_text("1")
    await expect(hint).to_be_hidden()
    known = await colors()
    proxy.interrupt()
    await expect(count).to_have_text("?")
    await expect(hint).to_be_visible()

    async def are_other_colors() -> bool:
        return all(one != other for one, other in zip(known, await colors(), strict=True))

    await eventually(are_other_colors)
    proxy.accept()
    await window.back()
    await expect(count).to_have_text("1")
    await expect(hint).to_be_hidden()

    async def are_known_colors() -> bool:
        return await colors() == known

    await eventually(are_known_colors)


async def test_an_unknown_address_shows_a_page_with_a_way_back(
    open_window: OpenWindow, prepared: Path, tmp_path: Path
) -> None:
    secrets = {"SECRET_KEY": "a secret", "DEMO_PASSWORD": "reliable"}
    with DemoServer(tmp_path, prepared, DEBUG="0", **secrets) as server:
        window = await open_window("", "/login/", through=server, phone=PHONES[0])
        background = "getComputedStyle(document.body).backgroundColor"
        style = await window.page.evaluate(background)
        form = window["login-form"]
        await form.get_by_label("Name").fill("carol")
        await form.get_by_label("Password").fill("reliable")
        await form.get_by_role("button").tap()
        await window["rooms"].wait_for()
        for path in ("/nowhere/", "/rooms/alice-and-bob/"):
            response = await window.page.goto(path)
            assert response is not None
            assert response.status == 404
            assert await window.page.evaluate(background) == style
            await check_layout(window, PHONES[0])
            await expect(window["username"]).to_have_text("carol")
            await window["back"].tap()
            await window["rooms"].wait_for()
        assert [text for text in window.complaints if "404 (Not Found)" not in text] == []
        window.complaints.clear()


async def test_a_form_from_before_another_login_shows_a_page_with_a_way_back(open_window: OpenWindow) -> None:
    window = await open_window("", "/login/", phone=PHONES[0])
    old = await window.page.context.new_page()
    await old.goto("/login/")
    await window["login-carol"].tap()
    await window["rooms"].wait_for()
    await old.get_by_test_id("login-dave").tap()
    await old.get_by_test_id("back").tap()
    await expect(old.get_by_test_id("username")).to_have_text("carol")
