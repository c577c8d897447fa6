"""A broadcast and an action make the calls that docs/architecture.md lists."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from reliable_cable import Channel, action, broadcast
from reliable_cable.channel import registry
from reliable_cable.concurrency import database_connections
from tests.support.call_tree import Call, CallTree, recorded_calls

from .test_incoming_cost import AsgiClient, connected, run_event_loop
from .wire import until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "architecture.md"
#: A row of a table: the number of a step, its function, its module, what happens, and the other functions of the step.
ROW = re.compile(r"^\| \d+ \| `([\w.]+)` \| `([\w./]+)` \| [^|]+ \| ([^|]*)\|$", re.MULTILINE)

#: The maximum depth of calls for a broadcast (to the store, and from the announcement to the socket) and for a command.
MAX_BROADCAST_DEPTH, MAX_COMMAND_DEPTH = 8, 9
#: The maximum number of steps of a command, besides the one that runs once per connection, and of their modules.
MAX_COMMAND, MAX_COMMAND_MODULES = 10, 6


class Room(Channel, abstract=True):
    def subscribed(self) -> None:
        self.stream_from("chat:1")

    @action
    async def speak(self, data: dict[str, Any]) -> None:
        self.transmit({"spoken": True})


@dataclass
class WritingClient:
    """A client, and the frames that its server has written."""

    client: AsgiClient
    written: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """A call on a path of calls. `others` are the names of the functions that it calls, besides the next step."""

    name: str
    module: str
    others: frozenset[str]


def section(heading: str) -> str:
    """Return a section of docs/architecture.md."""
    return PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def documented(heading: str, table: int = 0) -> list[Step]:
    """Return the steps in a table of a section."""
    tables = [rows for rows in map(ROW.findall, section(heading).split("\n\n")) if rows]
    return [Step(name, module, frozenset(re.findall(r"`([\w.]+)`", others))) for name, module, others in tables[table]]


def documented_depth(heading: str) -> int:
    """Return the maximum length of a chain of calls that a section of docs/architecture.md states."""
    (number,) = re.findall(r"No chain of calls is longer than (\d+)\.", " ".join(section(heading).split()))
    return int(number)


def traced(tree: CallTree, ways: Sequence[tuple[str, str]]) -> list[Step]:
    """Return the steps of paths from an outermost call to a goal, each step once.

    Args:
        tree: the calls.
        ways: for each path, the names of the outermost call and of the goal.
    """
    path: list[Call] = []
    for root, goal in ways:
        for call in tree.find(goal):
            if call.chain[0].name == root:
                path += [each for each in call.chain if each not in path]
    return [Step(call.name, call.module, frozenset(other.name for other in _others(call, path))) for call in path]


def _others(call: Call, path: Sequence[Call]) -> Iterator[Call]:
    for inner in call.calls:
        if inner not in path:
            yield from inner.walk()


def depth(tree: CallTree, *roots: str) -> int:
    """Return the length of the longest chain of calls that begins with one of these functions."""
    return max(len(call.chain) for call in tree.all() if call.chain[0].name in roots)


@pytest.fixture
async def room(settings: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WritingClient]:
    """A subscribed client whose server has a write function, as daphne and uvicorn have."""
    # A database connection that another test left open would add calls.
    monkeypatch.setattr(database_connections, "connected_threads", set())
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    monkeypatch.setitem(registry, "Room", [Room])
    async with connected() as client:
        writing = WritingClient(client)
        client.connection.outbox.write = client.connection.outbox.ready = writing.written.append
        yield writing


async def perform(room: WritingClient) -> None:
    """Call the action, and wait for its transmission."""
    before = len(room.written)
    room.client.put("message", data=json.dumps({"action": "speak"}))
    await until(lambda: len(room.written) > before)
    await run_event_loop()


async def test_a_broadcast_takes_the_documented_calls(room: WritingClient) -> None:
    trees: list[CallTree] = []

    def send() -> None:
        with recorded_calls() as tree:
            broadcast("chat:1", {"text": "x"})
        trees.append(tree)

    await asyncio.to_thread(send)  # the first message begins an epoch
    await until(lambda: room.written)
    await run_event_loop()
    room.written.clear()
    with recorded_calls() as delivery:
        await asyncio.to_thread(send)
        await until(lambda: room.written)
    sent = trees[1]
    assert documented("The way of a broadcast") == traced(sent, [("sync_only", "MemoryStreamStore.append")]), str(sent)
    arrived = traced(delivery, [("BusListener._drain", "EncodedBatch.send")])
    assert documented("The way of a broadcast", 1) == arrived, str(delivery)
    longest = max(depth(sent, "sync_only"), depth(delivery, "BusListener._drain"))
    assert documented_depth("The way of a broadcast") == longest <= MAX_BROADCAST_DEPTH


async def test_an_action_takes_the_documented_calls(room: WritingClient) -> None:
    await perform(room)
    with recorded_calls() as tree:
        await perform(room)
    receiving, handling = "CableConsumer.__call__", "CommandQueue._run"
    steps = traced(tree, [(receiving, "CommandQueue.add"), (handling, "run_calls"), (handling, "Outbox.push")])
    assert documented("The way of a command") == steps, str(tree)
    assert len(steps) - 1 <= MAX_COMMAND
    assert len({step.module for step in steps}) <= MAX_COMMAND_MODULES
    assert documented_depth("The way of a command") == depth(tree, receiving, handling) <= MAX_COMMAND_DEPTH
