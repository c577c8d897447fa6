"""Test of shared compression with Chromium, which offers permessage-deflate by default."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import OpenWindow
from tests.browser.demo import PROJECT, DemoServer, Publisher
from tests.support.faults import FaultProxy

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

PROTOCOL = "reliable_cable.servers.deflate:CompressingWebSocketProtocol"
LINES = [f"Line {number}: " + "to be said again and again, " * 20 for number in range(60)]


class CompressingServer(DemoServer):
    """The demo, served by uvicorn with compression, with the database of another server."""

    def __init__(self, folder: Path, beside: DemoServer) -> None:
        super().__init__(folder, beside.database)
        self.environment = beside.environment

    def _command(self) -> list[str]:
        options = ["--port", str(self.port), "--lifespan", "off", "--ws", PROTOCOL]
        return [sys.executable, "-m", "uvicorn", *options, f"{PROJECT}.asgi:application"]


async def test_a_page_shows_compressed_messages(
    open_window: OpenWindow, server: DemoServer, publisher: Publisher, room: str, tmp_path: Path
) -> None:
    with CompressingServer(tmp_path, server) as compressing:
        async with FaultProxy(compressing.port) as proxy:
            windows = [await open_window(user, f"/rooms/{room}/", through=proxy) for user in ("alice", "bob")]
            for window in windows:
                await window.state("connected")
            await publisher.say(room, LINES[:20])
            for window in windows:
                await window.shows(*LINES[:20])

            answers: list[dict[str, Any]] = []
            devtools = await windows[0].page.context.new_cdp_session(windows[0].page)
            devtools.on("Network.webSocketHandshakeResponseReceived", lambda event: answers.append(event))
            await devtools.send("Network.enable")
            await windows[0]["cut"].click()
            await windows[0].disconnected()
            await publisher.say(room, LINES[20:40])
            await windows[0]["restore"].click()
            await windows[0].back()
            await publisher.say(room, LINES[40:])
            for window in windows:
                await window.shows(*LINES)
                assert window.caught_up == []
            (answer,) = answers
            headers = {name.lower(): value for name, value in answer["response"]["headers"].items()}
            assert headers["sec-websocket-extensions"].startswith("permessage-deflate; server_no_context_takeover")
