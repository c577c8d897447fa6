"""Runs over HTTP: real servers, a real Celery worker, and readers that behave like `useChat`."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from reliable_cable.runs.http.ui_messages import build_message
from tests.support.celery import Worker
from tests.support.client import unique
from tests.support.run_servers import CSRF, LONG_QUESTION, QUESTION, TEXT, WORDS, pair, worker
from tests.support.server import LOCAL, PATIENCE, Kind, Server, ServerPool

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

__all__ = ["pair", "worker"]


@pytest.fixture(params=["daphne", "uvicorn"])
def kinds(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The kind of the server that a test uses, and the other kind."""
    return (request.param, "uvicorn" if request.param == "daphne" else "daphne")


class Reader:
    """Reads a response, and collects its chunks."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.chunks: list[dict[str, Any]] = []
        self.done = False

    @property
    def text(self) -> str:
        return "".join(chunk["delta"] for chunk in self.chunks if chunk["type"] == "text-delta")

    async def read(self, length: int | None = None) -> None:
        """Read until the text has `length` characters, or to the end."""
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                self.done = self.done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    self.chunks.append(json.loads(line.removeprefix("data: ")))
                    if length is not None and len(self.text) >= length:
                        return
        assert length is None


class Device:
    """A browser in which a user is logged in, and which may use both servers."""

    def __init__(self, user: str, cookie: str) -> None:
        self.chat = ""
        self._user = user
        headers = {"Cookie": f"{cookie}; csrftoken={CSRF}", "X-CSRFToken": CSRF}
        self._client = httpx.AsyncClient(headers=headers, **LOCAL)

    async def make_chat(self, server: Server) -> None:
        self.chat = unique(f"{self._user}-")
        await server.call("make_chat", self.chat)

    @asynccontextmanager
    async def ask(self, server: Server, text: str) -> AsyncIterator[Reader]:
        message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}
        body = {"id": self.chat, "messages": [message], "trigger": "submit-message"}
        async with self._client.stream("POST", self._url(server, ""), json=body) as response:
            assert response.status_code == 200, await response.aread()
            yield Reader(response)

    @asynccontextmanager
    async def resume(self, server: Server) -> AsyncIterator[Reader]:
        async with self._client.stream("GET", self._url(server, f"/{self.chat}/stream")) as response:
            assert response.status_code == 200, await response.aread()
            yield Reader(response)

    async def is_active(self, server: Server) -> bool:
        async with self._client.stream("GET", self._url(server, f"/{self.chat}/stream")) as response:
            return response.status_code != 204

    async def stop(self, server: Server) -> int:
        response = await self._client.post(self._url(server, f"/{self.chat}/stop"))
        return response.status_code

    async def try_to_ask(self, server: Server) -> int:
        """Send a question that starts no task. Return the status of the response."""
        message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "why?"}]}
        async with self._client.stream(
            "POST", self._url(server, ""), json={"id": self.chat, "messages": [message]}
        ) as got:
            return got.status_code

    async def aclose(self) -> None:
        await self._client.aclose()

    def _url(self, server: Server, path: str) -> str:
        return f"http://127.0.0.1:{server.port}/runs/chat{path}"


@pytest.fixture
async def device(pair: dict[str, Server], worker: Worker) -> AsyncIterator[Device]:
    user = unique("user")
    server = pair["uvicorn"]
    device = Device(user, await server.sign_in(user))
    await device.make_chat(server)
    yield device
    await device.aclose()


async def saved(server: Server, device: Device) -> dict[str, Any]:
    """Return the answer that the page of the project shows."""
    message: dict[str, Any] = (await server.call("messages_of", device.chat))[-1]
    return message


async def test_readers_that_come_late_get_the_whole_answer(
    pair: dict[str, Server], kinds: tuple[str, str], device: Device
) -> None:
    server, other = (pair[kind] for kind in kinds)
    async with device.ask(server, QUESTION) as first:
        await first.read(len(TEXT) // 4)
        async with device.resume(other) as second:
            await second.read(len(TEXT) // 2)
            assert second.chunks[0] == first.chunks[0]
        await first.read()
    assert first.text == TEXT
    assert first.done
    assert build_message(first.chunks) == await saved(server, device)
    assert not await device.is_active(other)


async def test_the_answer_goes_on_while_nobody_reads(
    pair: dict[str, Server], kinds: tuple[str, str], device: Device
) -> None:
    server, other = (pair[kind] for kind in kinds)
    async with device.ask(server, QUESTION) as first:
        await first.read(1)
    async with device.resume(other) as second:
        await second.read()
    assert second.text == TEXT
    assert build_message(second.chunks) == await saved(server, device)


async def test_a_server_that_is_killed(pair: dict[str, Server], kinds: tuple[str, str], device: Device) -> None:
    server, other = (pair[kind] for kind in kinds)
    try:
        async with device.ask(server, QUESTION) as first:
            await first.read(len(TEXT) // 4)
            server.kill()
            with pytest.raises(httpx.HTTPError):
                await first.read()
        async with device.resume(other) as second:
            await second.read()
    finally:
        server.start()
    assert second.text == TEXT
    assert second.text.startswith(first.text)


async def test_a_server_that_stops(pair: dict[str, Server], kinds: tuple[str, str], device: Device) -> None:
    server, other = (pair[kind] for kind in kinds)
    words = WORDS * 3  # the server may take more than a second before it ends the response
    try:
        async with device.ask(server, "say " + " ".join(words)) as first:
            await first.read(1)
            server.signal(signal.SIGTERM)
            await first.read()
            assert first.done
            assert first.chunks[-1]["type"] == "error"
            assert "restarting" in first.chunks[-1]["errorText"]
        async with device.resume(other) as second:
            await second.read()
        await server.stopped()
    finally:
        server.start()
    assert second.text == 3 * TEXT


async def test_a_stop_by_another_server(pair: dict[str, Server], kinds: tuple[str, str], device: Device) -> None:
    server, other = (pair[kind] for kind in kinds)
    async with device.ask(server, LONG_QUESTION) as first:
        await first.read(1)
        assert await device.stop(other) == 204
        await first.read()
    assert [chunk["type"] for chunk in first.chunks[-2:]] == ["abort", "finish"]
    assert build_message(first.chunks) == await saved(server, device)
    assert await device.stop(server) == 204


async def test_one_of_several_questions_starts_a_run(pair: dict[str, Server], device: Device) -> None:
    statuses = await asyncio.gather(*(device.try_to_ask(server) for server in 4 * list(pair.values())))
    assert sorted(statuses) == [200] + 7 * [409]


async def test_one_of_several_questions_starts_a_run_on_the_sqlite_of_startproject(
    servers: ServerPool, kind: Kind
) -> None:
    server = servers.get(kind, RUN_CHATS="tests.integration.project.runs.Chats")
    user = unique("user")
    device = Device(user, await server.sign_in(user))
    await device.make_chat(server)
    statuses = await asyncio.gather(*(device.try_to_ask(server) for _ in range(8)))
    assert sorted(statuses) == [200] + 7 * [409]
    await device.aclose()


async def test_a_reader_that_leaves_leaves_nothing_behind(
    pair: dict[str, Server], kinds: tuple[str, str], device: Device
) -> None:
    server = pair[kinds[0]]
    async with device.ask(server, LONG_QUESTION) as first:
        await first.read(1)
        assert await server.call("connections") == 1
        readers = []
        for _ in range(3):
            async with device.resume(server) as reader:
                await reader.read(1)
                readers.append(reader)
        async with asyncio.timeout(PATIENCE):
            while await server.call("connections") != 1:  # noqa: ASYNC110 - the server is another process
                await asyncio.sleep(0.05)
        assert await device.stop(server) == 204
        await first.read()
    async with asyncio.timeout(PATIENCE):
        while await server.call("connections"):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
