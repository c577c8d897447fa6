"""A client that reconnects to several servers in turn: a random walk with slow stores."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliable_cable import Channel
from reliable_cable.channel import registry
from reliable_cable.concurrency import threads
from reliable_cable.conf import CableSettings, read_settings
from reliable_cable.connection.commands import Commands
from reliable_cable.connection.connection import Connection, ConnectionState
from reliable_cable.connection.lifecycle import end_connection, open_connection
from reliable_cable.consumer import CableConsumer
from reliable_cable.hub.hub import Hub
from reliable_cable.identity import Identity
from reliable_cable.protocol.constants import Subprotocol
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.sessions.base import SessionRecord
from reliable_cable.stores.sessions.memory import MemorySessionStore
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.memory import MemoryStreamStore
from tests.support.memory_socket import MemorySocket
from tests.support.virtual_loop import VirtualLoop

from .wire import identifier

ANN = {"user": "ann"}
#: How long, in seconds, an access to a store may take.
DELAYS = [0, 0, 0, 0.001, 0.01, 0.03, 0.1, 0.4]


class Room(Channel, abstract=True):
    """A channel whose `subscribed` takes some time."""

    random: ClassVar[Random]

    async def subscribed(self) -> None:
        await asyncio.sleep(self.random.choice(DELAYS))
        self.stream_from("a")


class SlowStreams(MemoryStreamStore):
    def __init__(self, settings: CableSettings, random: Random) -> None:
        super().__init__(settings)
        self._random = random

    async def aappend(self, items: Sequence[tuple[str, Message]]) -> Any:
        await asyncio.sleep(self._random.choice(DELAYS))
        return await super().aappend(items)


class SlowSessions(MemorySessionStore):
    def __init__(self, settings: CableSettings, random: Random) -> None:
        super().__init__(settings)
        self._random = random

    async def asave(self, records: Mapping[str, SessionRecord]) -> None:
        await asyncio.sleep(self._random.choice(DELAYS) / 10)
        await super().asave(records)

    async def aload_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        await asyncio.sleep(self._random.choice(DELAYS) / 10)
        return await super().aload_many(wanted)


class Peer:
    """A connection of a client to one server, and the client's end of it."""

    def __init__(self, hub: Hub, sid: str = "") -> None:
        self.socket = MemorySocket(frames=True)
        self.connection = Connection(
            hub,
            CableConsumer(),
            subprotocol=Subprotocol.EXTENDED_JSON,
            identity=ANN,
            authenticated_at=hub.engine.session_clock.moment(),
            ping_interval=60,
            transport=self.socket,
        )
        self.commands = Commands(self.connection)
        self._opening = asyncio.get_running_loop().create_task(open_connection(self.commands, sid or None))
        self._end: asyncio.Task[None] | None = None

    async def welcomed(self) -> Any:
        """Wait for the welcome, request the history of all restored subscriptions, and return the welcome."""
        await self._opening
        frames = [frame for frame, _ in self.socket.read(10**9)]
        for name in self.connection.subscriptions:
            self.connection.receive(json.dumps({"command": "history", "identifier": name}))
        return frames[0]

    def end(self) -> None:
        """End the connection: the server notices that the client has gone, or that it has dropped the socket itself."""
        if self._end is None:
            self.socket.abort()
            self._end = asyncio.get_running_loop().create_task(self._finish())

    async def _finish(self) -> None:
        await asyncio.wait([self._opening])
        await end_connection(self.commands)


#: Of each connection: the server; how the former connection ends; whether the client subscribes; how long it stays.
STEPS = st.tuples(
    st.integers(0, 2), st.sampled_from(["open", "lost", "abandoned"]), st.booleans(), st.sampled_from(DELAYS)
)


@pytest.fixture
def _room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Handlers would wait for a thread now and then, if another test has left a database connection.
    monkeypatch.setattr(threads, "_connected", set())
    registry["Room"] = [Room]
    yield
    del registry["Room"]


@pytest.mark.usefixtures("_room")
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), steps=st.lists(STEPS, min_size=2, max_size=8))
def test_only_the_last_connection_of_a_client_stays_open(seed: int, steps: list[tuple[int, str, bool, float]]) -> None:
    Room.random = random = Random(seed)
    loop = VirtualLoop()
    try:
        loop.run_until_complete(reconnect(random, steps))
        assert not loop.errors
    finally:
        loop.finish()


async def reconnect(random: Random, steps: list[tuple[int, str, bool, float]]) -> None:
    """Open connections for one session, one after another, and check at the end which of them are open."""
    options = read_settings({"ENGINE": "memory", "PING_INTERVAL": 60, "HANDLER_THREADS": 0})
    streams, presence = SlowStreams(options, random), MemoryPresenceStore(options)
    sessions = SlowSessions(options, random)
    hubs = [Hub(Engine(streams, presence, sessions), options) for _ in range(3)]
    others = [Peer(hub) for hub in hubs]  # so that all servers receive control messages
    former = Peer(hubs[0])
    sid = (await former.welcomed())["sid"]
    await asyncio.sleep(1)
    peers = [former]
    for number, (server, former_end, subscribes, seconds) in enumerate(steps):
        if former_end == "abandoned" and number:
            # The client got no welcome. The server does not notice that it has gone.
            peers.append(Peer(hubs[server - 1], sid))
            await asyncio.sleep(5)
        peer = Peer(hubs[server], sid)
        if former_end == "lost":
            peers[-1].end()
        peers.append(peer)
        welcome = await peer.welcomed()
        assert welcome["restored"]
        sid = welcome["sid"]
        if subscribes:
            peer.connection.receive(json.dumps({"command": "subscribe", "identifier": identifier("Room", n=number)}))
        await asyncio.sleep(seconds)
        for each in peers:
            if each.socket.ended and random.random() < 0.5:
                each.end()
    await asyncio.sleep(5)
    assert peers[-1].connection.state is ConnectionState.OPEN
    assert [peer for peer in peers if not peer.socket.ended] == peers[-1:]
    for peer in [*peers, *others]:
        peer.end()
    await asyncio.sleep(5)
    for hub in hubs:
        assert not hub.connections
        assert not hub.sessions.live
        assert not hub.control._unconfirmed
