"""Answers that are larger than `MAX_PENDING_SIZE` can be read in all ways."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from reliable_cable.runs.http.ag_ui import build_messages
from reliable_cable.runs.http.ui_messages import build_message
from tests.support.client import Client, identify, unique
from tests.support.run_reader import RunReader
from tests.support.run_servers import CSRF
from tests.support.server import LOCAL, PATIENCE, Kind, Server, ServerPool

#: The default of `MAX_PENDING_SIZE`.
MAX_PENDING_SIZE = 1024 * 1024
#: A piece of the answer. It contains characters that JSON escapes, and others that UTF-8 makes longer.
PIECE = 'é "quoted"\n' * 6000
PIECES = 40
PART = {"type": "data", "name": "table", "data": "x" * 100_000}


@pytest.fixture
def served(servers: ServerPool, kind: Kind) -> Server:
    return servers.get(
        kind,
        RUN_PERMISSIONS="tests.integration.project.runs.Everyone",
        RUN_CHATS="tests.integration.project.runs.Chats",
    )


class Answer:
    """A long answer that is being written. The last piece is written by `end`."""

    def __init__(self, server: Server, run: str, chat: str, headers: dict[str, str]) -> None:
        self.server = server
        self.run = run
        self.chat = chat
        self.headers = headers
        self.identifier = identify("RunChannel", id=run)

    async def end(self) -> None:
        await self.server.call("add_to_run", self.run, [PIECE, PART])
        await self.server.call("end_run", self.run)

    async def row(self) -> dict[str, Any]:
        rows: dict[str, dict[str, Any]] = await self.server.call("run_rows", [self.run])
        return rows[self.run]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.port}/runs/{path}"


@pytest.fixture
async def answer(served: Server) -> Answer:
    user = unique("user")
    cookie = await served.sign_in(user)
    chat = unique(f"{user}-")
    run = await served.call("start_chat_run", user, chat)
    await served.call("begin_run", run)
    headers = {"Cookie": f"{cookie}; csrftoken={CSRF}", "X-CSRFToken": CSRF}
    return Answer(served, run, chat, headers)


async def write_most(answer: Answer) -> None:
    for _ in range(PIECES):
        await answer.server.call("add_to_run", answer.run, [PIECE, PART])


def is_long(reader: RunReader) -> bool:
    return len(reader.text) == PIECES * len(PIECE) and len(reader.parts) == PIECES


async def test_in_the_channel(answer: Answer) -> None:
    early, late, last = RunReader(), RunReader(), RunReader()
    async with Client(answer.server.url) as first, Client(answer.server.url) as second:
        await first.send("subscribe", answer.identifier, history={"since": 1})
        writing = asyncio.create_task(write_most(answer))
        await early.read(first.next, is_long, PATIENCE)
        await writing
        await second.send("subscribe", answer.identifier, history={"since": 1})
        await late.read(second.next, is_long, PATIENCE)
        await answer.end()
        for client, reader in ((first, early), (second, late)):
            await reader.read(client.next, lambda reader: reader.ended, PATIENCE)
        async with Client(answer.server.url) as client:
            await client.send("subscribe", answer.identifier, history={"since": 1})
            await last.read(client.next, lambda reader: reader.ended, PATIENCE)
        assert not first.log[-1].get("type") == "disconnect"
    row = await answer.row()
    for reader in (early, late, last):
        assert (reader.status, reader.text, reader.parts) == ("completed", row["text"], row["parts"])
    assert len(row["text"]) > 2 * MAX_PENDING_SIZE


async def read_events(answer: Answer, method: str, path: str, **options: Any) -> list[dict[str, Any]]:
    events = []
    rest = b""
    async with (
        httpx.AsyncClient(headers=answer.headers, **LOCAL) as http,
        http.stream(method, answer.url(path), **options) as response,
    ):
        assert response.status_code == 200
        async for data in response.aiter_bytes():
            *lines, rest = (rest + data).split(b"\n")
            events += [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]
    return events


async def test_over_http(answer: Answer) -> None:
    async with asyncio.TaskGroup() as tasks:
        connect = {"threadId": answer.chat, "messages": []}
        readers = [tasks.create_task(read_events(answer, "GET", f"chat/{answer.chat}/stream"))]
        readers.append(tasks.create_task(read_events(answer, "POST", "ag-ui/connect", json=connect)))
        await write_most(answer)
        readers.append(tasks.create_task(read_events(answer, "GET", f"chat/{answer.chat}/stream")))
        readers.append(tasks.create_task(read_events(answer, "POST", "ag-ui/connect", json=connect)))
        while await answer.server.call("connections") < 4:  # noqa: ASYNC110 - the server is another process
            await asyncio.sleep(0.05)
        await answer.end()
    early_ui, early_agent, late_ui, late_agent = (reader.result() for reader in readers)
    row = await answer.row()
    for chunks in (early_ui, late_ui):
        assert chunks[-1]["type"] == "finish"
        parts = build_message(chunks)["parts"]
        assert "".join(part["text"] for part in parts if part["type"] == "text") == row["text"]
        assert [part["data"] for part in parts if part["type"] == "data-table"] == [PART["data"]] * (PIECES + 1)
    for events in (early_agent, late_agent):
        assert events[-1]["type"] == "RUN_FINISHED"
        assert "".join(message["content"] for message in build_messages(events)) == row["text"]
        assert len([event for event in events if event["type"] == "CUSTOM"]) == PIECES + 1


async def test_a_client_that_reads_slowly(answer: Answer) -> None:
    await write_most(answer)
    reader = RunReader()
    async with Client(answer.server.url, reading=False) as client:
        await client.send("subscribe", answer.identifier, history={"since": 1})
        await answer.end()
        async with asyncio.timeout(PATIENCE):
            while not reader.ended:
                frame = json.loads(await client.socket.recv())
                if isinstance(frame.get("message"), dict):
                    reader.add(frame["message"])
    row = await answer.row()
    assert (reader.status, reader.text, reader.parts) == ("completed", row["text"], row["parts"])
