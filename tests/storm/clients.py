"""The clients of a storm: clients in Python, and npm clients in Node. Each subscription has a log of its events."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections import defaultdict
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from tests.node import FOLDER
from tests.support.client import Client, Frame, identify
from tests.support.recovering import RecoveringClient

from .plan import SUBSCRIPTIONS, now
from .presence import Change
from .truth import Connected, Delivery, Event, Signal

#: The name of a client and the number of one of its subscriptions.
Key = tuple[str, int]
NUMBERS = {identify(channel, **params): number for number, (channel, params, _) in enumerate(SUBSCRIPTIONS)}


class Logs:
    """The events of all clients, by client and subscription."""

    def __init__(self) -> None:
        self.logs: defaultdict[Key, list[Event]] = defaultdict(list)
        self.deliveries = self.signals = 0
        #: Descriptions of events that violate the protocol.
        self.complaints: list[str] = []
        #: Set when an event is recorded.
        self.changed = asyncio.Event()

    def deliver(self, key: Key, message: Mapping[str, Any], epoch: str, offset: int) -> None:
        """Record a message that a client received."""
        self.deliveries += 1
        if message["stream"] != SUBSCRIPTIONS[key[1]][2]:
            self.complaints.append(f"{key} received a message of the stream {message['stream']}")
        self.logs[key].append(Delivery(epoch, offset, message["id"], now()))
        self.changed.set()

    def signal(self, key: Key) -> None:
        """Record that a client received a notice of a loss."""
        self.signals += 1
        self.logs[key].append(Signal(now()))
        self.changed.set()

    def connect(self, key: Key) -> None:
        """Record that a client has connected, for the first time or again."""
        self.logs[key].append(Connected(now()))

    def last(self, key: Key) -> tuple[str, int]:
        """Return the position of the last message that a client received."""
        last = next((event for event in reversed(self.logs[key]) if isinstance(event, Delivery)), None)
        return ("", 0) if last is None else (last.epoch, last.offset)


class StormClient(RecoveringClient):
    """A client in Python that records its events in the logs of the storm."""

    def __init__(self, url: str, name: str, logs: Logs, *, restoring: bool) -> None:
        super().__init__(url, restoring=restoring)
        self.name = name
        #: The presence events that the client received.
        self.changes: list[Change] = []
        self._logs = logs

    async def _receive(self, client: Client, frame: Frame) -> None:
        if frame.get("type") == "presence" and frame["message"]["type"] in ("join", "leave"):
            message = frame["message"]
            self.changes.append(Change(message["type"], message["id"], now(), self.connects))
        elif frame.get("type") == "welcome":
            for connected in NUMBERS.values():
                self._logs.connect((self.name, connected))
        number = NUMBERS.get(frame.get("identifier", ""))
        if number is not None:
            key = (self.name, number)
            if "stream_id" in frame:
                self._logs.deliver(key, frame["message"], frame["epoch"], frame["offset"])
            elif frame.get("type") == "reject_history":
                self._logs.signal(key)
        await super()._receive(client, frame)


class NpmClients:
    """The unmodified npm clients in one Node process. Use it with `async with`.

    Each client joins the presence of the room, with its name as the id.

    Args:
        node: the path of Node.
        url: the URL of the cable.
        names: the names of the clients.
        logs: the logs for the events of the clients.
    """

    def __init__(self, node: str, url: str, names: list[str], logs: Logs) -> None:
        self._command = [node, str(FOLDER / "storm.mjs"), url, json.dumps(names)]
        self._command.append(json.dumps([[channel, params] for channel, params, _ in SUBSCRIPTIONS]))
        self._names = names
        self._logs = logs
        self._process: Process | None = None
        self._reader: asyncio.Task[None] | None = None
        #: The number of events that are neither messages nor notices of a loss, by kind.
        self.counts: defaultdict[str, int] = defaultdict(int)
        self._subscribed: set[Key] = set()
        self._changed = asyncio.Condition()
        self._members: dict[str, dict[str, Any] | None] = {}

    async def __aenter__(self) -> Self:
        if self._names:
            self._process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE)
            self._reader = asyncio.create_task(self._read(self._process))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._reader is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            await self._reader

    async def subscribed(self) -> None:
        """Wait until all subscriptions were confirmed."""
        wanted = len(self._names) * len(SUBSCRIPTIONS)
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self._subscribed) == wanted)

    async def members(self) -> dict[str, dict[str, Any] | None]:
        """Return each client's member list of the room, by the name of the client."""
        if self._process is None or self._process.stdin is None:
            return {}
        self._members = {}
        self._process.stdin.write(b"members\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: len(self._members) == len(self._names))
        return self._members

    async def _read(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._process_event(json.loads(line))
            async with self._changed:
                self._changed.notify_all()

    def _process_event(self, event: Mapping[str, Any]) -> None:
        if event["kind"] == "members":
            self._members[event["client"]] = event["members"]
            return
        key = (event["client"], event["number"])
        if event["kind"] == "message":
            self._logs.deliver(key, event["message"], event["meta"]["epoch"], event["meta"]["offset"])
        elif event["kind"] == "history_not_found":
            self._logs.signal(key)
        else:
            self.counts[event["kind"]] += 1
            if event["kind"] in ("connect", "restore"):
                self._logs.connect(key)
            if event["kind"] == "connect":
                self._subscribed.add(key)
            elif event["kind"] == "rejected":
                self._logs.complaints.append(f"the subscription {key} was rejected at {now():.1f}: {event['reason']}")
