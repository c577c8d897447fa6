"""Runs and durable streams over HTTP while a real PostgreSQL is stopped, or SQLite is locked."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import httpx
import pytest

from tests.integration.test_database_outage import Stage, postgres, stage, template
from tests.integration.test_durable_streams import SETTINGS
from tests.support import outage
from tests.support.client import unique
from tests.support.durable_reader import DurableReader
from tests.support.run_servers import CSRF
from tests.support.server import LOCAL, PATIENCE, Kind, Server, ServerPool

__all__ = ["postgres", "stage", "template"]

RUNS: dict[str, Any] = {**SETTINGS, "RUN_CHATS": "tests.integration.project.runs.Chats"}
PROMPT = "a secret question"
#: The two halves of a text. The second half cannot be stored before the outage ends.
BEFORE, AFTER = [f"before{number} " for number in range(5)], [f"after{number} " for number in range(5)]


class Site:
    """A server with a run and a durable stream, and an HTTP client that is logged in there.

    Args:
        server: the server.
        http: the HTTP client.
        chat: the name of a chat of the user who is logged in.
        run: the id of a run of this chat.
    """

    def __init__(self, server: Server, http: httpx.AsyncClient, chat: str, run: str) -> None:
        self.server = server
        self.http = http
        self.chat = chat
        self.run = run
        self.name = f"v1/{unique('stream')}"

    async def append(self, values: list[Any], **headers: str) -> int:
        """Append values to the durable stream, and return the status of the response."""
        headers["Content-Type"] = "application/json"
        url = f"/runs/durable/{self.name}"
        return (await self.http.post(url, content=json.dumps(values), headers=headers)).status_code

    def requests(self) -> list[httpx.Request]:
        """Return a request for each endpoint that needs the database."""
        message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": PROMPT}]}
        chat: dict[str, Any] = {"id": self.chat, "messages": [message]}
        agent = {"threadId": self.chat, "messages": [{"id": "m1", "role": "user", "content": PROMPT}]}
        durable, run = f"/runs/durable/{self.name}", f"/runs/{self.run}"
        text = {"Content-Type": "application/json"}
        values: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", run, {}),
            ("POST", f"{run}/stop", {}),
            ("POST", "/runs/chat", {"json": chat}),
            ("GET", f"/runs/chat/{self.chat}/stream", {}),
            ("POST", f"/runs/chat/{self.chat}/stop", {}),
            ("POST", "/runs/ag-ui", {"json": agent}),
            ("POST", "/runs/ag-ui/connect", {"json": agent}),
            ("GET", f"{run}/durable?offset=-1", {}),
            ("GET", f"{run}/durable?offset=-1&live=sse", {}),
            ("HEAD", f"{run}/durable", {}),
            ("GET", durable, {}),
            ("GET", f"{durable}?offset=now&live=long-poll", {}),
            ("HEAD", durable, {}),
            ("PUT", f"{durable}-2", {"headers": text}),
            ("POST", durable, {"content": json.dumps([PROMPT]), "headers": text}),
            ("DELETE", durable, {}),
        ]
        return [self.http.build_request(method, url, **options) for method, url, options in values]

    async def is_refused(self, request: httpx.Request) -> None:
        """Send a request, and check that it is refused because the database failed."""
        response = await self.http.send(request)
        assert response.status_code == 503, f"{request.method} {request.url}: {response.status_code} {response.text}"
        assert response.headers["Retry-After"] == "1"
        assert response.headers["Content-Type"] == "application/json"
        if request.method != "HEAD":
            assert response.json()["error"].startswith("The database failed.")

    async def text_of_chat(self) -> str:
        """Read the run as useChat does, until it has ended. Return its text."""
        async with asyncio.timeout(PATIENCE):
            while True:
                chunks: list[dict[str, Any]] = []
                async with self.http.stream("GET", f"/runs/chat/{self.chat}/stream?ended") as response:
                    if response.is_success:
                        lines = [line async for line in response.aiter_lines() if line.startswith("data: {")]
                        chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
                if any(chunk["type"] == "finish" for chunk in chunks):
                    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")


@asynccontextmanager
async def site(server: Server) -> AsyncIterator[Site]:
    """Begin to write a run, and create a durable stream, for a new user of a running server."""
    user = unique("user")
    cookie = await server.sign_in(user)
    chat = unique(f"{user}-")
    run = await server.call("start_chat_run", user, chat)
    await server.call("begin_run", run)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}",
        headers={"Cookie": f"{cookie}; csrftoken={CSRF}", "X-CSRFToken": CSRF},
        **LOCAL,
    ) as http:
        found = Site(server, http, chat, run)
        created = await http.put(f"/runs/durable/{found.name}", headers={"Content-Type": "application/json"})
        assert created.status_code == 201, created.text
        yield found


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_readers_miss_nothing_after_an_outage_of_postgresql(stage: Stage, kind: Kind) -> None:
    with stage.make(kind, **RUNS) as server:
        async with site(server) as shop, asyncio.timeout(3 * PATIENCE), asyncio.TaskGroup() as tasks:
            readers = [
                DurableReader(shop.http, url, live)
                for url in (f"/runs/durable/{shop.name}", f"/runs/{shop.run}/durable")
                for live in ("long-poll", "sse")
            ]
            reading = [tasks.create_task(reader.read()) for reader in readers]
            chat = tasks.create_task(shop.text_of_chat())
            await server.call("add_to_run", shop.run, BEFORE)
            assert await shop.append(BEFORE) == 204
            for reader in readers:
                await reader.until(lambda reader: BEFORE[-1] in str(reader.values))

            await asyncio.to_thread(outage.stop, stage.postgres, mode="fast")
            await asyncio.gather(*map(shop.is_refused, shop.requests()))
            for reader in readers[::2]:  # the other responses may last longer than the outage
                await reader.until(lambda reader: reader.statuses[503])
            await server.call("add_to_run", shop.run, AFTER)
            await asyncio.to_thread(outage.start, stage.postgres)

            await server.call("end_run", shop.run)
            assert await shop.append(AFTER, **{"Stream-Closed": "true"}) == 204
            await asyncio.gather(*reading)
            assert await chat == "".join(BEFORE + AFTER)
        for reader in readers[:2]:
            assert reader.values == BEFORE + AFTER
        for reader in readers[2:]:
            first, *events = reader.values
            texts = [event["content"] for event in (first, *events) if event["event"] in ("snapshot", "chunk")]
            assert "".join(texts) == "".join(BEFORE + AFTER)
            assert events[-1]["event"] == "complete"
        assert PROMPT not in server.log
        for line in ("Internal Server Error", "Service Unavailable"):
            assert line not in server.log


@pytest.mark.parametrize("kind", ["daphne", "uvicorn"])
async def test_requests_are_refused_while_sqlite_is_locked(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("locked")
    pool = ServerPool(folder, CABLE_TEST_SQLITE=json.dumps({"OPTIONS": {"timeout": 0.1}}))
    with pool.make(kind, **RUNS) as server:
        async with site(server) as shop:
            await server.call("add_to_run", shop.run, BEFORE)
            with closing(sqlite3.connect(server.database, isolation_level=None, timeout=PATIENCE)) as other:
                other.execute("BEGIN EXCLUSIVE")
                await asyncio.gather(*map(shop.is_refused, shop.requests()))
                await server.call("add_to_run", shop.run, AFTER)
                other.execute("ROLLBACK")
            await server.call("end_run", shop.run)
            assert await shop.text_of_chat() == "".join(BEFORE + AFTER)
            async with asyncio.timeout(PATIENCE):
                while await shop.append(AFTER) != 204:
                    pass
        assert PROMPT not in server.log
        assert "Internal Server Error" not in server.log
