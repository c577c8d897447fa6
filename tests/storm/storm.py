"""One storm, from its first broadcast to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.node import node_modules
from tests.support.client import identify

from .broadcasters import Broadcaster, ProcessCaller, TaskCaller, ViewCaller
from .clients import Logs, NpmClients, StormClient
from .faults import Faults
from .plan import PATIENCE, STREAMS, SUBSCRIPTIONS, Plan, now
from .stage import Stage
from .verdict import Finding, Sent, Truth, judge_log, judge_store

#: Broadcasts to each stream after the faults.
CLOSING = 3


@dataclass(slots=True)
class Outcome:
    """What came of a storm."""

    plan: Plan
    folder: Path
    findings: list[Finding] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    #: When each fault began, in seconds since the first one, and what it was.
    history: list[tuple[float, str]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    refused: int = 0
    uncertain: int = 0
    deliveries: int = 0
    signals: int = 0
    epochs: int = 0
    connects: int = 0
    restores: int = 0
    recreated: int = 0
    complaints: list[str] = field(default_factory=list)
    catching_up: float = 0.0

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not self.findings and not self.complaints


async def run(plan: Plan, folder: Path, tell: Callable[[str], None] = lambda text: None) -> Outcome:
    """Let a storm happen, and judge it.

    Args:
        plan: what to do.
        folder: for databases and logs of servers.
        tell: takes a line about each step.
    """
    rng = random.Random(plan.seed)
    logs = Logs()
    outcome = Outcome(plan, folder)
    async with AsyncExitStack() as stack:
        tell(f"starting servers; files are in {folder}")
        stage = await stack.enter_async_context(Stage(plan, folder))
        broadcasters = [
            Broadcaster(
                ViewCaller(stage.servers, random.Random(rng.random())), random.Random(rng.random()), plan.pause
            ),
            Broadcaster(ProcessCaller(stage.beside), random.Random(rng.random()), plan.pause),
            Broadcaster(TaskCaller(stage.broker.url), random.Random(rng.random()), plan.pause),
        ]
        for broadcaster in broadcasters:
            stack.push_async_callback(broadcaster.close)
        clients = [StormClient(stage.url, f"client-{number}", logs) for number in range(1, plan.clients + 1)]
        names = [f"npm-{number}" for number in range(1, plan.npm_clients + 1)]
        npm = NpmClients(await asyncio.to_thread(_node) if names else "", stage.url, names, logs)
        tell(f"{plan.clients} clients of our own and {plan.npm_clients} npm clients subscribe")
        await stack.enter_async_context(npm)
        for client in clients:
            await stack.enter_async_context(client)
        await asyncio.gather(*(_subscribe(client) for client in clients), npm.subscribed())
        everyone = [
            (name, number) for name in [*(c.name for c in clients), *names] for number in range(len(SUBSCRIPTIONS))
        ]

        def truth(stream: str) -> Truth:
            sent = [one for broadcaster in broadcasters for one in broadcaster.sent]
            return Truth(stream, sent, durable=stream not in plan.volatile)

        async def catch_up() -> None:
            ends = {stream: truth(stream).end for stream in STREAMS}
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    while any(logs.reached(key) != ends[SUBSCRIPTIONS[key[1]][2]] for key in everyone):
                        logs.changed.clear()
                        await logs.changed.wait()

        # Each broadcaster shows that it can, and everybody gets the first messages, before anything goes wrong.
        for stream in STREAMS:
            for broadcaster in broadcasters:
                await broadcaster.broadcast_surely(stream)
        await catch_up()
        tell(f"faults for {plan.seconds:g} s")
        faults = Faults(stage, random.Random(rng.random()))
        start = now()
        broadcasting = [asyncio.create_task(broadcaster.run()) for broadcaster in broadcasters]
        await faults.run(plan.seconds)
        tell("the faults are over; everybody catches up")
        for broadcaster in broadcasters:
            broadcaster.stop()
        await asyncio.gather(*broadcasting)
        for _ in range(CLOSING):
            for stream in STREAMS:
                await broadcasters[1].broadcast_surely(stream)
        over = now()
        await catch_up()
        outcome.catching_up = now() - over

    outcome.sent = [one for broadcaster in broadcasters for one in broadcaster.sent]
    outcome.refused = sum(broadcaster.refused for broadcaster in broadcasters)
    outcome.uncertain = sum(broadcaster.uncertain for broadcaster in broadcasters)
    outcome.faults = faults.counts
    outcome.history = [(at - start, kind) for at, kind in faults.history]
    outcome.deliveries, outcome.signals = logs.deliveries, logs.signals
    outcome.connects = sum(client.connects for client in clients) + npm.counts["connect"] // len(SUBSCRIPTIONS)
    outcome.restores = sum(client.restores for client in clients) + npm.counts["restore"] // len(SUBSCRIPTIONS)
    outcome.recreated = sum(client.recreated for client in clients) + npm.counts["recreate"]
    outcome.complaints = [*logs.complaints, *(f"{c.name}: {frame}" for c in clients for frame in c.complaints)]
    for stream in STREAMS:
        known = truth(stream)
        outcome.epochs += len(known.tails)
        of_stream = {key: logs.logs[key] for key in everyone if SUBSCRIPTIONS[key[1]][2] == stream}
        outcome.findings += judge_store(known, {f"{name} {number}": log for (name, number), log in of_stream.items()})
        for (name, number), log in of_stream.items():
            outcome.findings += judge_log(known, f"{name}, {stream} ({number})", log)
    return outcome


async def _subscribe(client: StormClient) -> None:
    for channel, params, _ in SUBSCRIPTIONS:
        await client.subscribe(identify(channel, **params))


def _node() -> str:
    node = shutil.which("node")
    if node is None:
        raise RuntimeError("the npm clients need Node; --npm-clients 0 goes without")
    node_modules()
    return node
