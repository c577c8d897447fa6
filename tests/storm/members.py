"""Presence in the storm: members come and go, and at the end everybody is asked who is there."""

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
from .plan import PATIENCE, PRESENCE_TTL, REDIS_LOSSES, ROOM, ROOM_IDENTIFIER, Fault, member_id
from .presence import Change, judge_beliefs, judge_changes, judge_last, untangle
from .verdict import Finding

#: Seconds between two changes of membership.
INTERVAL = 0.5
#: Seconds within which signals of one id may be sent in another order than that of the changes.
TANGLED = 0.1
#: Faults after which a change may not be signalled: the process that had to signal it was killed, data were lost, or
#: the answer of Redis came too late.
SWALLOWING = ("server SIGKILL", "server SIGTERM", "Redis stalled", "Redis hangs at commit", *REDIS_LOSSES)
#: Faults after which clients are told again who is there, in case they missed it (presence/lists.py).
RETOLD = (*SWALLOWING, "pub/sub cut", "Redis paused")


class Members:
    """Those of our own clients that are present in the room, by a name that two of them share.

    Args:
        clients: all of our own.
        npm: the others, each present by its name throughout.
        names: of the others.
        rng: chooses who comes and goes.
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
        """Let everybody watch, and the members join."""
        for client in self._clients:
            await client.watch(ROOM_IDENTIFIER)
        for client in self._ids:
            await self._join(client)

    async def run(self) -> None:
        """Let members come and go, until this is cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            client = self._rng.choice(list(self._ids))
            if ROOM_IDENTIFIER not in client.joined:
                await self._join(client)
            elif client.channels[ROOM_IDENTIFIER] == "connected":
                # The npm client, too, refuses to leave without a connection.
                await client.leave(ROOM_IDENTIFIER)
            self.changes += 1

    async def _join(self, client: StormClient) -> None:
        id_ = self._ids[client]
        await client.join(ROOM_IDENTIFIER, id_, {"name": id_})

    @property
    def expected(self) -> dict[str, Any]:
        """The info of everybody who should be there."""
        joined = {self._ids[client] for client in self._ids if ROOM_IDENTIFIER in client.joined}
        return {id_: {"name": id_} for id_ in sorted(joined) + list(self._names)}

    async def at_rest(self, process: OtherProcess) -> list[Finding]:
        """Wait until everybody believes what is so; return who does not."""
        findings: list[Finding] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE / 2):
                while True:
                    findings = judge_beliefs(
                        self.expected, await self._beliefs(), await process.call("who_is_there", ROOM)
                    )
                    if not findings:
                        break
                    await asyncio.sleep(0.2)
        return findings

    async def _beliefs(self) -> Mapping[str, Mapping[str, Any] | None]:
        for client in self._clients:
            if client.members.get(ROOM_IDENTIFIER) is None:
                await client.watch(ROOM_IDENTIFIER)
        beliefs: dict[str, Mapping[str, Any] | None] = dict(await self._npm.members())
        beliefs.update({client.name: client.members[ROOM_IDENTIFIER] for client in self._clients})
        return beliefs

    def judge(self, signals: Path, faults: Iterable[Fault]) -> list[Finding]:
        """Return what is wrong with the signals.

        Args:
            signals: the file in which processes recorded the signals that they sent.
            faults: the faults that were made.
        """
        faults = list(faults)
        excuses = [(fault.begun, fault.ended) for fault in faults if fault.kind in SWALLOWING]
        retold = [(fault.begun, fault.ended) for fault in faults if fault.kind in RETOLD]
        reach = 2 * PRESENCE_TTL
        findings: list[Finding] = []
        for client in self._clients:
            findings += judge_changes(client.name, client.changes, retold, reach=reach)
        lines = map(json.loads, signals.read_text().splitlines()) if signals.exists() else ()
        told = [Change(line["type"], line["id"], line["at"]) for line in lines if line["stream"] == ROOM]
        told = untangle(sorted(told, key=lambda change: change.at), within=TANGLED)
        findings += judge_changes("the signals", told, excuses, reach=reach)
        if not excuses:
            findings += judge_last("the signals", self.expected, told)
        return findings
