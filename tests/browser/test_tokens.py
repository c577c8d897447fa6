"""The unmodified client gets new tokens from its page, by `fetchTokenFromHTML`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.browser.conftest import OpenWindow
from tests.browser.demo import PROJECT, DemoServer, Publisher

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

#: How many tokens expire during the test.
EXPIRIES = 3


class TokenServer(DemoServer):
    """The demo with a page whose client needs tokens, with the database of another server."""

    def __init__(self, folder: Path, beside: DemoServer) -> None:
        super().__init__(folder, beside.database, DJANGO_SETTINGS_MODULE=f"{PROJECT}.token_settings")
        self.environment["DEMO_DATABASE"] = str(beside.database)

    def _command(self) -> list[str]:
        options = ["-b", "127.0.0.1", "-p", str(self.port)]
        return [sys.executable, "-m", "daphne", *options, f"{PROJECT}.token_page:application"]


async def test_a_page_whose_tokens_expire_loses_nothing(
    open_window: OpenWindow, server: DemoServer, publisher: Publisher, room: str, tmp_path: Path
) -> None:
    number = await publisher.call("room_id", room)
    with TokenServer(tmp_path, server) as tokens:
        window = await open_window("alice", f"/tokens/{number}/", through=tokens)
        page, messages = window["page"], window["messages"].locator("li")
        await expect(page).to_have_attribute("data-state", "connected")
        sent: list[str] = []
        for text in map(str, itertools.count(1)):
            await publisher.say(room, [text])
            sent.append(text)
            reasons = (await page.get_attribute("data-reasons") or "").split()
            if len(reasons) >= EXPIRIES:
                break
        await expect(messages).to_have_text(sent)
        assert set(reasons) == {"token_expired"}
        await expect(page).to_have_attribute("data-state", "connected")
        # Close the page before its server stops, because the page could not refresh its token after that.
        await window.page.close()
