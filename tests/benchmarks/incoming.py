"""`python -m tests.benchmarks incoming`: what a message from a client costs a server.

Clients send one message after another, so far apart that each finds its connection idle (`answered`: as fast as they
are answered). The same texts go to a bare ASGI application and to a Channels consumer, which decode them.
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

#: What is sent: the command, and its data; bare applications know only some.
KINDS: Mapping[str, tuple[str, Any]] = {
    "async action": ("message", json.dumps({"action": "nothing"})),
    "answered": ("message", json.dumps({"action": "answer"})),
    "sync action": ("message", json.dumps({"action": "sync_nothing"})),
    "whisper": ("whisper", {"cursor": [1, 2]}),
    "pong": ("pong", None),
}
#: Each of them decodes what it is sent; nothing else is the same for all.
BARE_KINDS = ("async action", "answered")
#: Messages of each client before it counts.
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
    """Declare the command's arguments."""
    parser.add_argument("--connections", type=int, default=100, help="clients (100)")
    parser.add_argument("--messages", type=int, default=100, help="that each sends (100)")
    parser.add_argument("--rate", type=float, default=20, help="messages a second of each client (20)")
    parser.add_argument("--only", action="append", default=[], help="measure servers with this in their name")
    parser.add_argument("--kind", action="append", choices=KINDS, help="what is sent (all)")
    parser.add_argument("--output", type=Path, help="for the results (JSON)")


def run(options: argparse.Namespace) -> int:
    """Measure, and print a table."""
    results: dict[str, dict[str, float]] = {}
    with stage(with_floor=False) as ground:
        for subject in SUBJECTS:
            if options.only and not any(word in subject.name for word in options.only):
                continue
            with running(subject, ground.environment, ground.folder / "log") as server:
                costs = asyncio.run(_measure(subject, server.pid, server.url, options))
            results[subject.name] = costs
            text = ", ".join(f"{kind} {cost:.0f}" for kind, cost in costs.items())
            sys.stdout.write(f"{subject.name:36} µs per message: {text}\n")
            sys.stdout.flush()
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0


async def _measure(subject: Subject, pid: int, url: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the µs of CPU that each kind of message costs."""
    costs: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        clients: list[tuple[Client, str]] = []
        for number in range(options.connections):
            # One ping a minute.
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
    # Commands are handled in order: whoever is answered has had all of them handled.
    await _answered(clients, "answered", 1, rate)


async def _answered(clients: list[tuple[Client, str]], kind: str, count: int, rate: float) -> None:
    async def go_on(client: Client, identifier: str) -> None:
        for _ in range(count):
            await _send(client, identifier, kind)
            await client.messages(identifier, 1, timeout=60)

    await asyncio.gather(*(go_on(client, identifier) for client, identifier in clients))
