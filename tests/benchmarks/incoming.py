"""Measures what a message from a client costs a server: `python -m tests.benchmarks incoming`.

Each client sends its messages so slowly that its connection is idle between them. For the kind `answered`, it sends
each message as soon as the previous one was answered. A bare ASGI application and a Channels consumer receive the same
messages and decode them, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks.fanout.process import usage
from tests.benchmarks.fanout.servers import PROJECT, Subject, running
from tests.benchmarks.stage import stage
from tests.support.client import Client, identify

#: The kinds of messages: the command and its data.
KINDS: Mapping[str, tuple[str, Any]] = {
    "async action": ("message", json.dumps({"action": "nothing"})),
    "answered": ("message", json.dumps({"action": "answer"})),
    "sync action": ("message", json.dumps({"action": "sync_nothing"})),
    "whisper": ("whisper", {"cursor": [1, 2]}),
    "pong": ("pong", None),
}
#: The kinds that the applications for comparison can receive, too.
BARE_KINDS = ("async action", "answered")
#: How many messages each client sends before the measurement.
WARM = 10


def _subject(name: str, server: str, application: str) -> Subject:
    options = ("--server", server)
    return Subject(name, "cable_serve", PROJECT, (), options, {"CABLE_BENCH_APPLICATION": application})


SUBJECTS = tuple(
    _subject(f"{name}, {server}", server, application)
    for server in ("uvicorn", "daphne")
    for name, application in (
        ("bare ASGI", "receiver"),
        ("AsyncWebsocketConsumer", "consumer"),
        ("reliable_cable", "cable"),
    )
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--connections", type=int, default=100, help="number of clients (100)")
    parser.add_argument("--messages", type=int, default=100, help="messages of each client (100)")
    parser.add_argument("--rate", type=float, default=20, help="messages of each client per second (20)")
    parser.add_argument("--only", action="append", default=[], help="measure only servers with this text in their name")
    parser.add_argument("--kind", action="append", choices=KINDS, help="kind of message (all)")
    parser.add_argument("--output", type=Path, help="file for the results (JSON)")


def run(options: argparse.Namespace) -> int:
    """Measure the servers, print a line for each, and return the exit code."""
    results: dict[str, dict[str, float]] = {}
    with stage(with_floor=False) as resources:
        for subject in SUBJECTS:
            if options.only and not any(word in subject.name for word in options.only):
                continue
            with running(subject, resources.environment, resources.folder / "log") as server:
                costs = asyncio.run(_measure(subject, server.pid, server.url, options))
            results[subject.name] = costs
            text = ", ".join(f"{kind} {cost:.0f}" for kind, cost in costs.items())
            sys.stdout.write(f"{subject.name:36} µs per message: {text}\n")
            sys.stdout.flush()
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0


async def _measure(subject: Subject, pid: int, url: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the CPU time that each kind of message costs, in µs."""
    costs: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        clients: list[tuple[Client, str]] = []
        for number in range(options.connections):
            # One ping per minute, so that pings cost next to nothing.
            client = await stack.enter_async_context(Client(url, query="pi=60"))
            identifier = identify("BenchChannel", stream=f"bench{number}", whisper=True)
            clients.append((client, await client.subscribe(identifier)))
        for kind in options.kind or KINDS:
            if "reliable_cable" not in subject.name and kind not in BARE_KINDS:
                continue
            send = _answered if kind == "answered" else _paced
            await send(clients, kind, WARM, options.rate)
            before = usage(pid)
            await send(clients, kind, options.messages, options.rate)
            costs[kind] = (usage(pid) - before).cpu / len(clients) / options.messages * 1e6
    return costs


async def _send(client: Client, identifier: str, kind: str) -> None:
    command, data = KINDS[kind]
    await client.send(command, identifier, **({} if data is None else {"data": data}))


async def _paced(clients: list[tuple[Client, str]], kind: str, count: int, rate: float) -> None:
    started = time.monotonic()
    step = 1 / rate / len(clients)
    for number in range(count * len(clients)):
        await asyncio.sleep(started + number * step - time.monotonic())
        await _send(*clients[number % len(clients)], kind)
    # Commands are handled in order, so after an answer all earlier commands have been handled.
    await _answered(clients, "answered", 1, rate)


async def _answered(clients: list[tuple[Client, str]], kind: str, count: int, rate: float) -> None:
    async def send_all(client: Client, identifier: str) -> None:
        for _ in range(count):
            await _send(client, identifier, kind)
            await client.messages(identifier, 1, timeout=60)

    await asyncio.gather(*(send_all(client, identifier) for client, identifier in clients))
