"""Tests of the assistant: every page has the whole answer, even if the connection is cut, and shows how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, expect

from tests.browser.conftest import OpenWindow
from tests.browser.demo import DemoServer, Publisher, Window, eventually
from tests.support.celery import Worker
from tests.support.faults import FaultProxy
from tests.support.redis import RedisPool, find_binaries

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

QUESTION = "What happens when I am cut off and reconnect? And what is an offset?"

#: A JavaScript function that returns whether an element contains what the page's showMarkdown makes of a text.
SHOWS = """async (element, text) => {
  const { showMarkdown } = await import("/static/chat/markdown.js");
  const expected = document.createElement("div");
  showMarkdown(expected, text);
  return element.innerHTML === expected.innerHTML;
}"""


async def new_conversation(window: Window) -> str:
    """Begin a new conversation, and return the path of its page."""
    await window["new-conversation"].click()
    await window.page.wait_for_url("**/assistant/*/")
    await window.state("connected")
    return "/" + window.page.url.split("/", 3)[3]


async def ask(window: Window, question: str) -> Locator:
    """Ask a question, and return the locator of the answer on the page."""
    await window.state("connected")
    await window["prompt"].fill(question)
    await window["ask"].click()
    answer = window["answer"].last
    await expect(answer.locator(".prompt")).to_have_text(question)
    return answer


async def length(answer: Locator) -> int:
    """Return the number of characters that the page shows of an answer."""
    return len(await answer.get_by_test_id("text").inner_text())


async def has_length(answer: Locator, least: int) -> None:
    """Wait until the page shows at least this number of characters of an answer."""

    async def is_long() -> bool:
        return await length(answer) >= least

    await eventually(is_long)


async def ended(answer: Locator, publisher: Publisher, status: str) -> dict[str, Any]:
    """Wait for the end of the answer, check that the page shows the saved text, and return the saved answer."""
    await expect(answer).to_have_attribute("data-state", status)
    saved: dict[str, Any] = await publisher.call("answer", await answer.get_attribute("data-run"))
    assert saved["status"] == status

    async def shows() -> bool:
        return bool(await answer.get_by_test_id("text").evaluate(SHOWS, saved["text"]))

    await eventually(shows)
    return saved


async def test_an_answer_is_complete_after_cuts_by_the_button(open_window: OpenWindow, publisher: Publisher) -> None:
    window = await open_window("alice", "/assistant/", cuts=True)
    path = await new_conversation(window)
    device = await open_window("alice", path)
    await device.state("connected")
    answer = await ask(window, QUESTION)
    seen = device["answer"].last
    for least in (20, 200):
        await has_length(answer, least)
        await window["cut"].click()
        await expect(answer).to_have_attribute("data-state", "disconnected")
        await expect(answer.get_by_role("status")).to_contain_text("The connection is lost.")
        had = await length(answer)
        await has_length(seen, had + 40)
        assert await length(answer) == had
        await window["restore"].click()
        await expect(answer).to_have_attribute("data-state", "running")
    for each in (answer, seen):
        saved = await ended(each, publisher, "completed")
        assert "**offset**" in saved["text"]
        await expect(each.locator(".text strong").first).to_have_text("offset")


async def test_an_answer_is_complete_after_a_reset_of_the_network(
    open_window: OpenWindow, proxy: FaultProxy, publisher: Publisher
) -> None:
    window = await open_window("bob", "/assistant/", through=proxy)
    device = await open_window("bob", await new_conversation(window))
    await device.state("connected")
    answer = await ask(window, QUESTION)
    await has_length(answer, 20)
    proxy.interrupt()
    await window.disconnected()
    had = await length(answer)
    # The answer ends while this window is disconnected.
    await ended(device["answer"].last, publisher, "completed")
    assert await length(answer) == had
    proxy.accept()
    await window.back()
    await ended(answer, publisher, "completed")


async def test_an_answer_survives_a_reload_and_a_second_device_joins_in(
    open_window: OpenWindow, publisher: Publisher
) -> None:
    window = await open_window("carol", "/assistant/")
    path = await new_conversation(window)
    await has_length(await ask(window, QUESTION), 20)
    await window.page.reload()
    answer = window["answer"].last
    await has_length(answer, 60)
    device = await open_window("carol", path)
    await has_length(device["answer"].last, 60)
    await expect(answer).to_have_attribute("data-state", "running")
    for each in (answer, device["answer"].last):
        await ended(each, publisher, "completed")
    await window.page.reload()
    await ended(window["answer"].last, publisher, "completed")


async def test_any_device_stops_an_answer_and_tries_it_again(open_window: OpenWindow, publisher: Publisher) -> None:
    window = await open_window("dave", "/assistant/")
    path = await new_conversation(window)
    await expect(window["stop"]).to_be_hidden()
    answer = await ask(window, QUESTION)
    await has_length(answer, 20)
    await expect(window["ask"]).to_be_hidden()
    device = await open_window("dave", path)
    await device["stop"].click()
    for each in (answer, device["answer"].last):
        saved = await ended(each, publisher, "stopped")
        await expect(each.get_by_role("status")).to_have_text("Stopped.")
    await expect(window["stop"]).to_be_hidden()
    assert saved["text"]

    # Without the stop, the answer to the same question has the same beginning and is longer.
    await window["retry"].click()
    await expect(answer).to_have_attribute("data-state", "running")
    for each in (answer, device["answer"].last):
        whole = await ended(each, publisher, "completed")
    assert whole["attempt"] == 2
    assert whole["text"].startswith(saved["text"])
    assert len(whole["text"]) > len(saved["text"])


async def test_two_conversations_are_answered_at_the_same_time(open_window: OpenWindow, publisher: Publisher) -> None:
    first, second = [await open_window("alice", "/assistant/") for _ in range(2)]
    await new_conversation(first)
    answer = await ask(first, QUESTION)
    await new_conversation(second)
    other = await ask(second, "Who is present?")
    await has_length(other, 5)
    await expect(answer).to_have_attribute("data-state", "running")
    await ended(other, publisher, "completed")
    await ended(answer, publisher, "completed")
    await expect(first["answer"]).to_have_count(1)
    await expect(second["answer"]).to_have_count(1)
    await expect(second["conversations"].locator("[aria-current]")).to_have_text("Who is present?")
    await first.page.reload()
    await expect(first["conversations"].locator("a").nth(1)).to_contain_text("What happens when I am cut off")


async def test_a_second_question_has_to_wait_for_the_first_answer(
    open_window: OpenWindow, publisher: Publisher
) -> None:
    window = await open_window("dave", "/assistant/")
    await new_conversation(window)
    answer = await ask(window, QUESTION)
    await window["prompt"].fill("And?")
    await window["prompt"].press("Enter")
    await expect(window["notice"]).to_contain_text("One answer at a time")
    await expect(window["prompt"]).to_have_value("And?")
    await ended(answer, publisher, "completed")
    await expect(window["answer"]).to_have_count(1)


async def test_an_error_is_shown_and_the_next_question_is_answered(
    open_window: OpenWindow, publisher: Publisher
) -> None:
    window = await open_window("dave", "/assistant/")
    await new_conversation(window)
    answer = await ask(window, "Please fail half-way")
    saved = await ended(answer, publisher, "failed")
    await expect(answer.get_by_role("status")).to_have_text("The model is not available; please try again.")
    assert saved["text"]
    await expect(answer.get_by_test_id("retry")).to_be_visible()
    await ended(await ask(window, "Who?"), publisher, "completed")


async def test_html_in_an_answer_is_text(open_window: OpenWindow, publisher: Publisher) -> None:
    window = await open_window("dave", "/assistant/")
    await new_conversation(window)
    answer = await ask(window, "How does this stream?")
    await ended(answer, publisher, "completed")
    await expect(answer.locator(".text")).to_contain_text("""like <b onclick="alert('!')">this</b>""")
    attacks = (
        "<script>alert(1)</script>\n\n<img src=x onerror=alert(1)>\n\n<svg><style><a id='</style><img src=x>'>\n\n"
        "![image](https://example.com/?secret) [run](javascript:alert(1)) [data](data:text/html,x) "
        "[good](https://example.com/) <form action=/logout/><input></form> `<b>`"
    )
    markup = await answer.locator(".text").evaluate(
        """async (element, text) => {
          const { showMarkdown } = await import("/static/chat/markdown.js");
          showMarkdown(element, text);
          return [...element.querySelectorAll("*")].map((each) =>
            [each.localName, ...each.getAttributeNames().map((name) => `${name}=${each.getAttribute(name)}`)].join(" ")
          );
        }""",
        attacks,
    )
    assert {each.split()[0] for each in markup} <= {"p", "a", "code"}
    links = [each for each in markup if each.split()[0] == "a"]
    assert links == ["a", "a", "a href=https://example.com/ target=_blank rel=noopener noreferrer"]
    await expect(answer.locator(".text")).to_contain_text("<script>alert(1)</script>")


@pytest.mark.redis
async def test_an_answer_whose_worker_is_killed_fails_and_can_be_tried_again(
    open_window: OpenWindow, prepared: Path, redis_pool: RedisPool, tmp_path: Path
) -> None:
    broker = redis_pool.get(find_binaries()[0].name).url
    with DemoServer(tmp_path, prepared, CELERY_BROKER_URL=broker, REDIS_URL=broker) as server:
        async with Publisher(server) as publisher:
            window = await open_window("", "/assistant/", through=server)
            await window["login-alice"].click()
            with Worker(tmp_path, server.environment, app="demo_project.celery") as worker:
                answer = await ask(window, QUESTION)
                await has_length(answer, 20)
                worker.kill()
                await expect(answer).to_have_attribute("data-state", "failed")
            interrupted = "The answer was interrupted. Please try again."
            await expect(answer.get_by_role("status")).to_have_text(interrupted)
            # The page may have text that was broadcast after the last save.
            await window.page.reload()
            await ended(answer, publisher, "failed")
            await expect(answer.get_by_role("status")).to_have_text(interrupted)
            await answer.get_by_test_id("retry").click()
            await expect(answer).to_have_attribute("data-state", "queued")
            await expect(answer.get_by_role("status")).to_have_text("Waiting for a worker…")
            with Worker(tmp_path, server.environment, app="demo_project.celery"):
                saved = await ended(answer, publisher, "completed")
            assert saved["attempt"] == 2
