"""Runs over HTTP with AG-UI: real servers, a real Celery worker, and agents of the npm package `@ag-ui/client`."""

from __future__ import annotations

import asyncio
import json
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.node import FOLDER, node_modules, require_node
from tests.support.celery import Worker
from tests.support.client import unique
from tests.support.run_servers import CSRF, LONG_QUESTION, QUESTION, TEXT, WORDS, pair, worker
from tests.support.server import PATIENCE, Server
from tests.unit.test_docs import BLOCKS

pytestmark = [pytest.mark.node, pytest.mark.postgres, pytest.mark.redis]

__all__ = ["pair", "worker"]


@pytest.fixture(params=["daphne", "uvicorn"])
def server(request: pytest.FixtureRequest, pair: dict[str, Server]) -> Server:
    """The server that a test uses."""
    return pair[request.param]


@pytest.fixture
def other(server: Server, pair: dict[str, Server]) -> Server:
    """The server of `pair` that is not `server`."""
    return pair["uvicorn" if server.kind == "daphne" else "daphne"]


class Agents:
    """A process of Node with agents of one user, and the chat that they share."""

    def __init__(self, process: Process, user: str) -> None:
        self.chat = unique(f"{user}-")
        self._process = process

    async def make(self, name: str, server: Server, messages: Any = ()) -> Agent:
        """Return a new agent, which stands for a new device of the user."""
        agent = Agent(self, name)
        values = {"url": url_of(server), "thread": self.chat, "messages": list(messages)}
        await agent("make", **values)
        return agent

    async def call(self, **command: Any) -> Any:
        """Send a command to the process, and return its result."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), PATIENCE)
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]


class Agent:
    """An agent in the process of Node. Call this object with the name of a command."""

    def __init__(self, agents: Agents, name: str) -> None:
        self._agents = agents
        self._name = name

    async def __call__(self, do: str, **values: Any) -> Any:
        """Send a command for this agent, such as `connect`, and return its result."""
        return await self._agents.call(do=do, name=self._name, **values)

    async def move(self, server: Server) -> None:
        """Use another server from now on."""
        await self("move", url=url_of(server))

    async def end(self) -> dict[str, Any]:
        """Wait until the agent has finished running. Return its messages, events, warnings and error."""
        ended: dict[str, Any] = await self("end")
        assert ended["warnings"] == []
        return ended


def url_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/runs/ag-ui"


@pytest.fixture
async def agents(pair: dict[str, Server], worker: Worker, tmp_path: Path) -> AsyncIterator[Agents]:
    node = require_node()
    (tmp_path / "node_modules").symlink_to(await asyncio.to_thread(node_modules))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    for block in BLOCKS:
        if block.text.startswith(("// conversation_agent.js", "// page.js")):
            (tmp_path / block.text.split()[1]).write_text(block.text)
    user = unique("user")
    server = pair["uvicorn"]
    cookie = f"{await server.sign_in(user)}; csrftoken={CSRF}"
    process = await asyncio.create_subprocess_exec(
        node, str(FOLDER / "ag_ui_agents.mjs"), str(tmp_path), cookie, stdin=PIPE, stdout=PIPE, limit=2**22
    )
    try:
        agents = Agents(process, user)
        await server.call("make_chat", agents.chat)
        yield agents
    finally:
        process.kill()
        await process.wait()


async def saved(server: Server, agents: Agents) -> list[dict[str, Any]]:
    """Return the messages of the chat, as a page of the project shows them."""
    messages: list[dict[str, Any]] = await server.call("ag_ui_messages_of", agents.chat)
    return messages


def texts(messages: list[dict[str, Any]]) -> str:
    return "".join(message.get("content", "") for message in messages if message["role"] == "assistant")


async def test_a_late_comer_and_a_second_device(server: Server, other: Server, agents: Agents) -> None:
    first = await agents.make("first", server)
    await first("ask", id="q1", text=QUESTION)
    await first("text", length=len(TEXT) // 2)  # after about a second, when a part of the answer is saved
    # The page of the second device shows the question.
    second = await agents.make("second", other, [{"id": "q1", "role": "user", "content": QUESTION}])
    await second("connect")
    await second("text", length=3 * len(TEXT) // 4)
    ended = [await agent.end() for agent in (first, second)]
    expected = await saved(server, agents)
    assert texts(expected) == TEXT
    for each in ended:
        assert each["error"] is None
        assert each["messages"] == expected
        assert each["events"][-1]["type"] == "RUN_FINISHED"
    assert [event["type"] for event in ended[1]["events"][:2]] == ["RUN_STARTED", "MESSAGES_SNAPSHOT"]
    starts = [event["messageId"] for each in ended for event in each["events"] if event["type"] == "TEXT_MESSAGE_START"]
    assert len(set(starts)) == 1
    assert len({json.dumps([each["events"][0]["runId"]]) for each in ended}) == 1
    # The conversation goes on. A page that is loaded again with all messages is sent none of them twice.
    await second("ask", id="q2", text="say once more")
    again = await second.end()
    assert again["error"] is None
    assert again["messages"] == await saved(server, agents)
    reloaded = await agents.make("reloaded", server, again["messages"])
    await reloaded("connect")
    assert (await reloaded.end())["messages"] == again["messages"]


async def test_a_second_question_and_a_stop(server: Server, other: Server, agents: Agents) -> None:
    first = await agents.make("first", server)
    await first("ask", id="q1", text=LONG_QUESTION)
    await first("text", length=1)
    second = await agents.make("second", other)
    await second("ask", id="q2", text=QUESTION)
    refused = (await second.end())["error"]
    assert refused["status"] == 409
    assert "in progress" in refused["payload"]["error"]
    await second("connect")
    await second("text", length=1)
    await first("stop", url=url_of(other))
    stopped = [await agent.end() for agent in (first, second)]
    expected = await saved(server, agents)
    for each in stopped:
        assert each["error"] is None
        assert each["events"][-1]["outcome"] == {"type": "cancelled"}
        assert texts(each["messages"]) == texts(expected)
    assert stopped[0]["messages"] == expected
    # Closing the request does not stop the run.
    await first("ask", id="q3", text=QUESTION)
    await first("text", length=len(texts(expected)) + 1)
    await first("abort")
    aborted = await first.end()
    assert aborted["error"] is None
    await first("connect")
    ended = await first.end()
    assert texts(ended["messages"]) == texts(expected) + TEXT
    assert ended["messages"] == await saved(server, agents)


async def test_the_page_of_the_docs(server: Server, agents: Agents) -> None:
    await agents.call(do="open", url=url_of(server), thread=agents.chat)
    await agents.call(do="click", question=QUESTION, button="#ask")
    assert await agents.call(do="see", length=len(TEXT)) == TEXT
    await has_ended(server, agents)
    await agents.call(do="click", question=LONG_QUESTION, button="#ask")
    await agents.call(do="see", length=1, former=TEXT)
    await agents.call(do="click", button="#stop")
    await has_ended(server, agents)
    assert len(texts(await saved(server, agents))) < 35 * len(TEXT)


async def has_ended(server: Server, agents: Agents) -> None:
    """Wait until no run of the chat is active."""
    async with asyncio.timeout(PATIENCE):
        while (await server.call("messages_of", agents.chat))[-1]["role"] == "user":  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def test_an_error(server: Server, agents: Agents) -> None:
    agent = await agents.make("agent", server)
    await agent("ask", id="q1", text="fail after these words")
    ended = await agent.end()
    (error,) = (event for event in ended["events"] if event["type"] == "RUN_ERROR")
    assert error["code"] == "failed"
    assert ended["error"] is None
    assert texts(ended["messages"]) == "these words "
    stranger = await agents.make("stranger", server)
    await stranger("make", url=url_of(server), thread="someone-else")
    await stranger("ask", id="q1", text=QUESTION)
    assert (await stranger.end())["error"]["status"] == 404


async def test_a_server_that_is_killed(server: Server, other: Server, agents: Agents) -> None:
    agent = await agents.make("agent", server)
    try:
        await agent("ask", id="q1", text=QUESTION)
        await agent("text", length=len(TEXT) // 4)
        server.kill()
        lost = await agent.end()
        assert lost["error"] is not None
        assert lost["events"][-1]["type"] not in ("RUN_FINISHED", "RUN_ERROR")
        await agent.move(other)
        await agent("connect")
        ended = await agent.end()
    finally:
        server.start()
    assert ended["error"] is None
    assert texts(ended["messages"]) == TEXT
    assert ended["messages"] == await saved(other, agents)


async def test_a_server_that_stops(server: Server, other: Server, agents: Agents) -> None:
    agent = await agents.make("agent", server)
    words = WORDS * 3  # the server may take more than a second before it ends the response
    try:
        await agent("ask", id="q1", text="say " + " ".join(words))
        await agent("text", length=1)
        server.signal(signal.SIGTERM)
        interrupted = await agent.end()
        assert interrupted["events"][-1]["code"] == "interrupted"
        assert "restarting" in interrupted["events"][-1]["message"]
        # An agent without a method `connect` continues with `run`.
        await agent.move(other)
        await agent("run")
        ended = await agent.end()
        await server.stopped()
    finally:
        server.start()
    assert ended["error"] is None
    assert texts(ended["messages"]) == 3 * TEXT
    assert ended["messages"] == await saved(other, agents)
