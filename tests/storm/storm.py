"""Runs one storm, from its first broadcast to the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from tests.node import node_modules
from tests.support.client import identify
from tests.support.storms import StormOutcome

from .broadcasters import Broadcaster, ProcessCaller, TaskCaller, ViewCaller
from .clients import Key, Logs, NpmClients, StormClient
from .faults import Faults
from .members import Members
from .plan import ALL_STREAMS, BURST_HISTORY, BURST_STREAMS, PATIENCE, SUBSCRIPTIONS, Plan, now
from .stage import Stage
from .truth import Delivery, Event, Sent, Truth
from .verdict import Finding, judge_log, judge_store

#: One in this many clients never asks the server to restore its session. It recovers by its positions instead.
RECOVERING = 4
#: How many messages to broadcast to each stream in each round after the faults.
CLOSING = 3
#: How long, in seconds, to wait for all clients to catch up in each round after the faults.
ROUND = 10.0


@dataclass(slots=True)
class Outcome(StormOutcome[Plan, Finding]):
    """The results of a storm."""

    faults: Counter[str] = field(default_factory=Counter)
    #: The time of each fault, in seconds since faults began, and its kind.
    history: list[tuple[float, str]] = field(default_factory=list)
    broadcasts: int = 0
    refused: int = 0
    uncertain: int = 0
    deliveries: int = 0
    connects: int = 0
    restores: int = 0
    recreated: int = 0
    epochs: int = 0
    signals: int = 0
    changes: int = 0
    catching_up: float = 0.0


class Storm:
    """Servers, broadcasters, clients and faults.

    Args:
        plan: the plan of the storm.
        folder: the folder for databases and logs.
        progress: called with a line of text before each step.
    """

    def __init__(self, plan: Plan, folder: Path, progress: Callable[[str], None] = lambda text: None) -> None:
        self._plan = plan
        self._folder = folder
        self._progress = progress
        self._rng = random.Random(plan.seed)
        self._logs = Logs()
        self._names = [f"npm-{number}" for number in range(1, plan.npm_clients + 1)]
        self._stage = Stage(plan, folder)
        self._broadcasters: list[Broadcaster] = []
        self._fault_broadcaster: Broadcaster
        self._clients: list[StormClient] = []
        self._npm: NpmClients
        self._members: Members
        self._faults: Faults
        self._keys: list[Key] = []

    async def run(self) -> Outcome:
        """Run the storm, and return its results."""
        outcome = Outcome(self._plan, self._folder)
        async with AsyncExitStack() as stack:
            await self._start(stack)
            await self._broadcast_first()
            start = now()
            await self._make_faults()
            over = now()
            await self._broadcast_last()
            outcome.catching_up = now() - over
            history = sorted(self._faults.history, key=lambda fault: fault.begun)
            outcome.history = [(fault.begun - start, fault.kind) for fault in history]
            outcome.complaints += self._stage.dead_processes()
            outcome.findings += await self._members.wait_for_lists(self._stage.beside)
            outcome.findings += self._members.judge(self._stage.signals, self._faults.history)
        self._count(outcome)
        self._judge(outcome)
        if not outcome.good:
            self._write_events(self._folder / "events.jsonl", start)
        return outcome

    def _new_rng(self) -> random.Random:
        return random.Random(self._rng.random())

    # -- steps --------------------------------------------------------------------------------------------------------

    async def _start(self, stack: AsyncExitStack) -> None:
        """Start all processes and clients, and wait until all clients have subscribed."""
        self._progress(f"starting servers; files are in {self._folder}")
        stage = await stack.enter_async_context(self._stage)
        callers = [
            ViewCaller(stage.servers, self._new_rng()),
            ProcessCaller(stage.beside),
            TaskCaller(stage.broker.url),
        ]
        for caller in callers:
            stack.push_async_callback(caller.close)
        self._broadcasters = [Broadcaster(caller, self._new_rng(), self._plan) for caller in callers]
        caller = ViewCaller(stage.servers, self._new_rng(), "fault")
        stack.push_async_callback(caller.close)
        self._fault_broadcaster = Broadcaster(caller, self._new_rng(), self._plan)
        self._progress(f"{self._plan.clients} clients in Python and {self._plan.npm_clients} npm clients subscribe")
        node = await asyncio.to_thread(find_node) if self._names else ""
        self._npm = NpmClients(node, stage.url, self._names, self._logs)
        await stack.enter_async_context(self._npm)
        for number in range(1, self._plan.clients + 1):
            restoring = number % RECOVERING != 0
            client = StormClient(stage.url, f"client-{number}", self._logs, restoring=restoring)
            self._clients.append(await stack.enter_async_context(client))
        await asyncio.gather(*(_subscribe(client) for client in self._clients), self._npm.subscribed())
        names = [*(client.name for client in self._clients), *self._names]
        self._keys = [(name, number) for name in names for number in range(len(SUBSCRIPTIONS))]
        self._members = Members(self._clients, self._npm, self._names, self._new_rng())
        self._faults = Faults(stage, self._new_rng(), self._fault_broadcaster)

    async def _broadcast_first(self) -> None:
        """Broadcast to each stream before the faults, and wait until all clients have received the messages."""
        for stream in ALL_STREAMS:
            for broadcaster in self._broadcasters:
                await broadcaster.broadcast_until_stored(stream)
        await self._catch_up()
        await self._members.enter()

    async def _make_faults(self) -> None:
        """Broadcast while faults are made, and wait until all faults and broadcasts have ended."""
        self._progress(f"faults for {self._plan.seconds:g} s")
        broadcasting = [asyncio.create_task(broadcaster.run()) for broadcaster in self._broadcasters]
        moving = asyncio.create_task(self._members.run())
        await self._faults.run(self._plan.seconds)
        moving.cancel()
        for broadcaster in self._broadcasters:
            broadcaster.stop()
        await asyncio.gather(*broadcasting)

    async def _broadcast_last(self) -> None:
        """Broadcast some messages without faults, until all clients have caught up.

        A client that reconnects late may receive a notice that it missed all messages of a round. It must then receive
        the messages of the next round.
        """
        self._progress("the faults are over; the clients catch up")
        end = now() + PATIENCE
        while now() < end:
            for _ in range(CLOSING):
                for stream in ALL_STREAMS:
                    await self._broadcasters[1].broadcast_until_stored(stream)
            if await self._catch_up(ROUND):
                break

    async def _catch_up(self, seconds: float = PATIENCE) -> bool:
        """Wait until all clients have the newest message of each stream, and return whether they have it."""
        truths = {stream: self._truth(stream) for stream in ALL_STREAMS}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(truths[_stream(key)].reached(self._logs.last(key)) for key in self._keys):
                    self._logs.changed.clear()
                    await self._logs.changed.wait()
                return True
        return False

    # -- results ------------------------------------------------------------------------------------------------------

    @property
    def _sent(self) -> list[Sent]:
        return [one for broadcaster in self._all_broadcasters for one in broadcaster.sent]

    @property
    def _all_broadcasters(self) -> list[Broadcaster]:
        return [*self._broadcasters, self._fault_broadcaster]

    def _truth(self, stream: str) -> Truth:
        losses = self._plan.losses(stream, self._faults.history)
        return Truth(stream, self._sent, losses, BURST_HISTORY if stream in BURST_STREAMS else None)

    def _count(self, outcome: Outcome) -> None:
        outcome.broadcasts = len(self._sent)
        outcome.refused = sum(broadcaster.refused for broadcaster in self._all_broadcasters)
        outcome.uncertain = sum(broadcaster.uncertain for broadcaster in self._all_broadcasters)
        outcome.faults = self._faults.counts
        outcome.deliveries, outcome.signals = self._logs.deliveries, self._logs.signals
        per_cable = len(SUBSCRIPTIONS)
        outcome.connects = sum(client.connects for client in self._clients) + self._npm.counts["connect"] // per_cable
        outcome.restores = sum(client.restores for client in self._clients) + self._npm.counts["restore"] // per_cable
        outcome.recreated = sum(client.recreated for client in self._clients) + self._npm.counts["recreate"]
        outcome.changes = self._members.changes
        outcome.complaints += [*self._logs.complaints, *self._faults.complaints]
        for broadcaster in self._all_broadcasters:
            outcome.complaints += broadcaster.complaints
        for client in self._clients:
            outcome.complaints += [f"{client.name} received {frame}" for frame in client.complaints]

    def _write_events(self, path: Path, start: float) -> None:
        """Write all events to a file, to find the cause of a finding. Times are in seconds since faults began."""
        events: list[tuple[float, str, list[object]]] = [
            (fault.begun, "fault", [fault.kind, fault.ended - start]) for fault in self._faults.history
        ]
        for one in self._sent:
            known: list[object] = [one.stream, one.id, one.position, one.result.value, one.ended - start]
            events.append((one.begun, "sent", known))
        for key in self._keys:
            for event in self._logs.logs[key]:
                events.append((event.at, type(event).__name__, [*key, *_position(event)]))
        for client in self._clients:
            events += [
                (change.at, change.type, [client.name, change.id, change.connection]) for change in client.changes
            ]
        with path.open("w") as file:
            for at, kind, what in sorted(events, key=itemgetter(0)):
                file.write(json.dumps([round(at - start, 3), kind, *what]) + "\n")

    def _judge(self, outcome: Outcome) -> None:
        for stream in ALL_STREAMS:
            truth = self._truth(stream)
            outcome.epochs += len(truth.tails)
            logs = {key: self._logs.logs[key] for key in self._keys if _stream(key) == stream}
            outcome.findings += judge_store(truth, {f"{name} {number}": log for (name, number), log in logs.items()})
            for (name, number), log in logs.items():
                outcome.findings += judge_log(truth, f"{name}, {stream} ({number})", log)


def _position(event: Event) -> list[object]:
    return [event.epoch, event.offset, event.id] if isinstance(event, Delivery) else []


def _stream(key: Key) -> str:
    return SUBSCRIPTIONS[key[1]][2]


async def _subscribe(client: StormClient) -> None:
    for channel, params, _ in SUBSCRIPTIONS:
        await client.subscribe(identify(channel, **params))


def find_node() -> str:
    """Install the npm packages if necessary, and return the path of Node.

    Raises:
        RuntimeError: Node is not installed.
    """
    node = shutil.which("node")
    if node is None:
        raise RuntimeError("the npm clients need Node, which is not installed; use --npm-clients 0")
    node_modules()
    return node
