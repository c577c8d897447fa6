"""Presence in a storm: members join and leave, and at the end all member lists are compared."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.server import OtherProcess

from .clients import NpmClients, StormClient
from .plan import DATABASE_LOSSES, PATIENCE, PRESENCE_TTL, REDIS_LOSSES, ROOM, ROOM_IDENTIFIER, Fault, member_id
from .presence import Change, judge_changes, judge_last, judge_lists, reorder
from .verdict import Finding

#: The time, in seconds, between two joins or leaves.
INTERVAL = 0.5
#: If two changes of a member are at most this many seconds apart, their signals may be sent in the wrong order.
SIGNAL_DISORDER = 0.1
#: Faults after which the signal of a change may be missing: the process that had to send it was killed, data were lost,
#: or the answer of the store came too late.
SIGNAL_LOSSES = (
    "server SIGKILL",
    "server SIGTERM",
    "Redis stalled",
    "Redis hangs at commit",
    *REDIS_LOSSES,
    *DATABASE_LOSSES,
)
#: Faults after which a client may receive presence events again, because it may have missed some.
EVENT_REPEATS = (*SIGNAL_LOSSES, "pub/sub cut", "Redis paused")


class Members:
    """The clients that are members of the room. Two of the Python clients share an id.

    Args:
        clients: all clients in Python.
        npm: the npm clients, which are members during the whole storm.
        names: the names of the npm clients, which are their member ids.
        rng: chooses the client that joins or leaves.
    """

    def __init__(
        self, clients: Sequence[StormClient], npm: NpmClients, names: Sequence[str], rng: random.Random
    ) -> None:
        self._clients = clients
        self._npm = npm
        self._names = names
        self._rng = rng
        ids = {client: member_id(number, len(clients)) for number, client in enumerate(clients, 1)}
        self._ids = {client: id_ for client, id_ in ids.items() if id_ is not None}
        self.changes = 0

    async def enter(self) -> None:
        """Make all clients keep a member list, and make the clients that are members join."""
        for client in self._clients:
            await client.watch(ROOM_IDENTIFIER)
        for client in self._ids:
            await self._join(client)

    async def run(self) -> None:
        """Let random members join or leave until this is cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            client = self._rng.choice(list(self._ids))
            if ROOM_IDENTIFIER not in client.joined:
                await self._join(client)
            elif client.channels[ROOM_IDENTIFIER] == "connected":
                # Like the npm client, leave only while the channel is connected.
                await client.leave(ROOM_IDENTIFIER)
            self.changes += 1

    async def _join(self, client: StormClient) -> None:
        id_ = self._ids[client]
        await client.join(ROOM_IDENTIFIER, id_, {"name": id_})

    @property
    def expected(self) -> dict[str, Any]:
        """The info of each id that should be a member."""
        joined = {self._ids[client] for client in self._ids if ROOM_IDENTIFIER in client.joined}
        return {id_: {"name": id_} for id_ in sorted(joined) + list(self._names)}

    async def wait_for_lists(self, process: OtherProcess) -> list[Finding]:
        """Wait until all member lists are right, and return a finding for each wrong one."""
        findings: list[Finding] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE / 2):
                while True:
                    findings = judge_lists(self.expected, await self._lists(), await process.call("who_is_there", ROOM))
                    if not findings:
                        break
                    await asyncio.sleep(0.2)
        return findings

    async def _lists(self) -> Mapping[str, Mapping[str, Any] | None]:
        for client in self._clients:
            if client.members.get(ROOM_IDENTIFIER) is None:
                await client.watch(ROOM_IDENTIFIER)
        lists: dict[str, Mapping[str, Any] | None] = dict(await self._npm.members())
        lists.update({client.name: client.members[ROOM_IDENTIFIER] for client in self._clients})
        return lists

    def judge(self, signals: Path, faults: Iterable[Fault]) -> list[Finding]:
        """Return a finding for each wrong presence event of a client and each wrong presence signal of a server.

        Args:
            signals: the file in which processes recorded the signals that they sent.
            faults: the faults that were made.
        """
        faults = list(faults)
        excuses = [(fault.begun, fault.ended) for fault in faults if fault.kind in SIGNAL_LOSSES]
        repeats = [(fault.begun, fault.ended) for fault in faults if fault.kind in EVENT_REPEATS]
        reach = 2 * PRESENCE_TTL
        findings: list[Finding] = []
        for client in self._clients:
            findings += judge_changes(client.name, client.changes, repeats, reach=reach)
        lines = map(json.loads, signals.read_text().splitlines()) if signals.exists() else ()
        recorded = [Change(line["type"], line["id"], line["at"]) for line in lines if line["stream"] == ROOM]
        recorded = reorder(sorted(recorded, key=lambda change: change.at), within=SIGNAL_DISORDER)
        findings += judge_changes("the presence signals", recorded, excuses, reach=reach)
        if not excuses:
            findings += judge_last("the presence signals", self.expected, recorded)
        return findings
