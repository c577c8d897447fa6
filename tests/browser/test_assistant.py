"""Tests of the assistant: the page has each piece of an answer once and in order, even if the connection is cut."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import Locator, expect

from tests.browser.conftest import OpenWindow
from tests.browser.demo import Publisher, Window
from tests.browser.proxy import TcpProxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

QUESTION = "What happens when I am cut off and reconnect? And what is an offset?"

#: Clicks a button as soon as the next answer has started.
CLICK_DURING_ANSWER = """(button) => {
  new MutationObserver((_, observer) => {
    observer.disconnect();
    button.click();
  }).observe(document.querySelector("#answers"), {childList: true});
}"""


async def ask(window: Window, question: str) -> Locator:
    """Ask a question, and return the locator of the answer on the page."""
    await window.state("connected")
    await window["prompt"].fill(question)
    await window["ask"].click()
    answer = window["answer"].last
    await expect(answer.locator(".prompt")).to_have_text(question)
    return answer


async def chunks(answer: Locator) -> int:
    """Return the number of pieces on the page."""
    return int(await answer.get_attribute("data-chunks") or 0)


async def has_chunks(window: Window, answer: Locator, count: int) -> None:
    """Wait until the page has a number of pieces."""
    pattern = "|".join(str(number) for number in range(count, 1000))
    await expect(answer).to_have_attribute("data-chunks", re.compile(f"^({pattern})$"))


async def ended(answer: Locator, publisher: Publisher, status: str) -> dict[str, Any]:
    """Wait for the end of the answer, check that the page has the saved text, and return it."""
    await expect(answer).to_have_attribute("data-status", status)
    saved: dict[str, Any] = await publisher.call("answer", int(await answer.get_attribute("data-answer-id") or 0))
    assert saved["status"] == status
    assert await answer.locator(".text").text_content() == saved["text"]
    assert await answer.get_attribute("data-repeats") == "0"
    assert await answer.get_attribute("data-reloaded") is None
    assert await chunks(answer) == len(re.findall(r"\S+\s*", saved["text"]))
    return saved


async def test_an_answer_is_complete_after_cuts_by_the_button(open_window: OpenWindow, publisher: Publisher) -> None:
    window, watcher = [await open_window("alice", "/assistant/") for _ in range(2)]
    await watcher.state("connected")
    answer = await ask(window, QUESTION)
    seen = watcher["answer"].last
    for count in (8, 40):
        await has_chunks(window, answer, count)
        await window["cut"].click()
        await window.state("offline")
        had = await chunks(answer)
        await has_chunks(watcher, seen, had + 10)
        assert await chunks(answer) == had
        await expect(answer).to_have_attribute("data-status", "running")
        await window["restore"].click()
        await window.state("connected")
    saved = await ended(answer, publisher, "complete")
    assert "offset" in saved["text"]
    await ended(seen, publisher, "complete")


async def test_an_answer_is_complete_after_a_reset_of_the_network(
    open_window: OpenWindow, proxy: TcpProxy, publisher: Publisher
) -> None:
    window = await open_window("bob", "/assistant/", through=proxy)
    watcher = await open_window("bob", "/assistant/")
    await watcher.state("connected")
    answer = await ask(window, QUESTION)
    seen = watcher["answer"].last
    await has_chunks(window, answer, 8)
    proxy.cut()
    await window.disconnected()
    had = await chunks(answer)
    # The answer ends while this window is disconnected.
    await ended(seen, publisher, "complete")
    assert await chunks(answer) == had
    proxy.restore()
    await window.back()
    await ended(answer, publisher, "complete")


async def test_an_answer_survives_a_reload_of_the_page(open_window: OpenWindow, publisher: Publisher) -> None:
    window = await open_window("carol", "/assistant/")
    answer = await ask(window, QUESTION)
    await has_chunks(window, answer, 8)
    await window.page.reload()
    await ended(window["answer"].last, publisher, "complete")


async def test_an_answer_can_be_stopped(open_window: OpenWindow, publisher: Publisher) -> None:
    window = await open_window("dave", "/assistant/")
    await expect(window["stop"]).to_be_hidden()
    answer = await ask(window, QUESTION)
    await has_chunks(window, answer, 5)
    await expect(window["ask"]).to_be_hidden()
    await window["stop"].click()
    saved = await ended(answer, publisher, "stopped")
    await expect(answer.get_by_role("status")).to_have_text("Stopped.")
    await expect(window["stop"]).to_be_hidden()

    # Without the stop, the answer to the same question has the same beginning and is longer.
    again = await ask(window, QUESTION)
    whole = (await ended(again, publisher, "complete"))["text"]
    assert whole.startswith(saved["text"])
    assert len(whole) > len(saved["text"])


async def test_a_second_question_has_to_wait_for_the_first_answer(
    open_window: OpenWindow, publisher: Publisher
) -> None:
    window = await open_window("dave", "/assistant/")
    had = await window["answer"].count()
    await window.page.get_by_role("button", name="Fail half-way").evaluate(CLICK_DURING_ANSWER)
    answer = await ask(window, QUESTION)
    await expect(window["notice"]).to_contain_text("One answer at a time")
    await ended(answer, publisher, "complete")
    await expect(window["answer"]).to_have_count(had + 1)


async def test_an_error_is_shown_and_the_next_question_is_answered(
    open_window: OpenWindow, publisher: Publisher
) -> None:
    window = await open_window("dave", "/assistant/")
    answer = await ask(window, "Please fail half-way")
    saved = await ended(answer, publisher, "error")
    assert saved["error"]
    await expect(answer.get_by_role("status")).to_have_text(saved["error"])
    assert saved["text"]
    await expect(window["ask"]).to_be_visible()
