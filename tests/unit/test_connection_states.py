"""On random walks through the states of connections, each reason for a close has the effects that a model predicts."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from reliable_cable.channel import registry
from reliable_cable.concurrency.pacing import Pacer
from reliable_cable.conf import read_settings
from reliable_cable.connection.closing import CLOSINGS
from reliable_cable.connection.commands import Commands
from reliable_cable.connection.connection import CLOSE_TIMEOUT, Connection, ConnectionState
from reliable_cable.connection.lifecycle import end_connection, open_connection
from reliable_cable.consumer import CableConsumer
from reliable_cable.hub.hub import Hub
from reliable_cable.protocol.constants import CLOSE_NORMAL, DisconnectReason, Subprotocol
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.sessions.memory import MemorySessionStore
from reliable_cable.stores.streams.memory import MemoryStreamStore
from tests.support.memory_socket import MemorySocket
from tests.support.random_walk import run_random_walks
from tests.support.virtual_loop import VirtualLoop

from .closing_model import ANN, EVERYTHING, MEANINGS, Client, Peer, Room
from .wire import identifier


@pytest.mark.parametrize("reason", DisconnectReason)
def test_each_reason_has_a_meaning(reason: DisconnectReason) -> None:
    assert reason in CLOSINGS
    assert reason.value in MEANINGS


peers = st.integers(0, 3)
iterations = st.sampled_from([0, 1, 2, 3, 5, 20])


class Lives(RuleBasedStateMachine):
    """Up to four connections of one user at a time, in all states."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.peers: list[Peer] = []
        self.by_connection: dict[Connection, Peer] = {}
        self.drains: list[asyncio.Task[None]] = []
        self.numbers = count()
        self.clients: list[Client] = []
        Room.gate, Room.begun = asyncio.Event(), []

    @initialize()
    def begin(self) -> None:
        settings = read_settings({"ENGINE": "memory", "PING_INTERVAL": 60, "HANDLER_THREADS": 0})
        self.sessions = MemorySessionStore(settings)
        engine = Engine(MemoryStreamStore(settings), MemoryPresenceStore(settings), self.sessions)
        self.hub = self.loop.call(lambda: Hub(engine, settings))
        # Only one restore proceeds in each iteration of the event loop, so restores wait for one another.
        self.hub.pacer = Pacer(1)

    # -- opening -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.peers) < 4)
    @rule(extended=st.sampled_from([True, True, True, False]), frames=st.booleans(), then=iterations)
    def open(self, extended: bool, frames: bool, then: int) -> None:
        self.clients.append(client := Client())
        self._open(client, extended=extended, frames=frames)
        self.loop.iterate(then)

    @precondition(lambda self: len(self.peers) < 4 and any(client.can_restore for client in self.clients))
    @rule(
        client=peers,
        frames=st.booleans(),
        reason=st.one_of(st.none(), st.none(), st.sampled_from(list(DisconnectReason))),
        then=iterations,
    )
    def restore(self, client: int, frames: bool, reason: DisconnectReason | None, then: int) -> None:
        known = [each for each in self.clients if each.can_restore]
        peer = self._open(known[-1 - client % len(known)], frames=frames)
        self.loop.iterate(then)
        if reason is not None:
            self.loop.call(lambda: peer.connection.close(reason))

    def _open(self, client: Client, *, extended: bool = True, frames: bool = True) -> Peer:
        socket = MemorySocket(frames=frames)
        connection = Connection(
            self.hub,
            CableConsumer(),
            subprotocol=Subprotocol.EXTENDED_JSON if extended else Subprotocol.BASE_JSON,
            identity=ANN,
            authenticated_at=self.hub.engine.session_clock.moment(),
            ping_interval=60,
            transport=socket,
        )
        peer = Peer(client, Commands(connection), socket)
        client.peers.append(peer)
        self.peers.append(peer)
        self.by_connection[connection] = peer
        peer.opening = self._spawn(lambda: open_connection(peer.commands, client.sid or None))
        return peer

    def _spawn(self, coroutine: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        return self.loop.call(lambda: self.loop.create_task(coroutine()))

    # -- while it is open ----------------------------------------------------------------------------------------------

    def _pick(self, number: int) -> Peer:
        return self.peers[number % len(self.peers)]

    @precondition(lambda self: self.peers)
    @rule(peer=peers, slow=st.booleans(), then=iterations)
    def subscribe(self, peer: int, slow: bool, then: int) -> None:
        one = self._pick(peer)
        name = identifier("Room", n=next(self.numbers), **({"slow": True} if slow else {}))
        self._send(one, {"command": "subscribe", "identifier": name})
        self.loop.iterate(then)

    @precondition(lambda self: self.peers)
    @rule(peer=peers)
    def request_history(self, peer: int) -> None:
        one = self._pick(peer)
        if one.connection.extended:
            for name in list(one.connection.subscriptions):
                self._send(one, {"command": "history", "identifier": name})

    def _send(self, peer: Peer, command: dict[str, Any]) -> None:
        self.loop.call(lambda: peer.connection.receive(json.dumps(command)))

    @rule()
    def let_handlers_finish(self) -> None:
        self.loop.call(Room.gate.set)
        self.loop.iterate(10)
        Room.gate.clear()

    @precondition(lambda self: self.peers)
    @rule(peer=peers, size=st.sampled_from([100, 700, 1500]))
    def write(self, peer: int, size: int) -> None:
        one = self._pick(peer)
        self.loop.call(lambda: one.connection.outbox.push(json.dumps({"type": "pad", "pad": "x" * size})))

    @precondition(lambda self: self.peers)
    @rule(peer=peers)
    def begin_or_stop_to_read(self, peer: int) -> None:
        one = self._pick(peer)
        one.reads = not one.reads

    def _read(self, peer: Peer) -> None:
        for frame, _ in self.loop.call(lambda: peer.socket.read(EVERYTHING)):
            peer.log.append(frame)
            if frame["type"] == "welcome" and peer is peer.client.peers[-1] and peer.connection.extended:
                peer.client.sid = frame["sid"]

    @rule(count=st.sampled_from([1, 3, 20]))
    def let_the_loop_run(self, count: int) -> None:
        self.loop.iterate(count)

    @rule(seconds=st.sampled_from([0.06, 1.0, 2.5, 11.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.run_for(seconds)

    # -- the end -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.peers)
    @rule(
        peer=peers,
        reasons=st.lists(st.sampled_from(list(DisconnectReason)), min_size=1, max_size=2),
        reconnect=st.sampled_from([None, None, True, False]),
        between=st.sampled_from([0, 0, 1, 5]),
        then=iterations,
    )
    def close(
        self, peer: int, reasons: list[DisconnectReason], reconnect: bool | None, between: int, then: int
    ) -> None:
        one = self._pick(peer)
        for reason in reasons:
            self.loop.call(lambda reason=reason: one.connection.close(reason, reconnect=reconnect))  # type: ignore[misc]
            self._check_that_nothing_is_read(one)
            self.loop.iterate(between)
        self.loop.iterate(then)

    def _check_that_nothing_is_read(self, peer: Peer) -> None:
        assert peer.connection.ending
        name = identifier("Room", n=next(self.numbers), late=True)
        self._send(peer, {"command": "subscribe", "identifier": name})
        self._send(peer, {"command": "ping"})

    @precondition(lambda self: self.peers)
    @rule(peer=peers, delay=st.sampled_from([0.0, 0.5]), then=iterations)
    def drain(self, peer: int, delay: float, then: int) -> None:
        one = self._pick(peer)
        # Only connections that the hub knows are drained.
        if one.connection in self.hub.connections.all():
            self.drains.append(self._spawn(lambda: one.connection.drain(delay)))
            self.loop.iterate(then)

    @precondition(lambda self: self.peers)
    @rule(peer=peers, then=iterations)
    def lose_a_client(self, peer: int, then: int) -> None:
        one = self._pick(peer)
        self._end(one)
        self.loop.iterate(then)

    @precondition(lambda self: any(peer.socket.ended for peer in self.peers))
    @rule(then=iterations)
    def let_the_server_notice(self, then: int) -> None:
        for peer in [each for each in self.peers if each.socket.ended]:
            self._end(peer)
        self.loop.iterate(then)

    def _end(self, peer: Peer) -> None:
        """End a connection, as the consumer does when the ASGI server reports a disconnect."""
        if peer.end is None:
            self._read(peer)
            peer.left = not peer.socket.ended
            self.loop.call(peer.socket.abort)

            async def end() -> None:
                assert peer.opening is not None
                await asyncio.wait([peer.opening])
                await end_connection(peer.commands)

            peer.end = self._spawn(end)

    # -- invariants ----------------------------------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        assert not self.loop.errors
        for peer in list(self.peers):
            if peer.reads and peer.socket.readable:
                self._read(peer)
            self._check_peer(peer)
            if peer.end is not None and peer.end.done():
                peer.end.result()
                self._check_ended(peer)
                self.peers.remove(peer)

    def _check_peer(self, peer: Peer) -> None:
        connection, socket = peer.connection, peer.socket
        assert peer.opening is not None
        if peer.opening.done():
            peer.opening.result()
        if not peer.closes and peer.end is None:
            assert connection.state is (ConnectionState.OPEN if peer.opening.done() else ConnectionState.OPENING)
            assert not socket.ended
            return
        assert connection.ending or peer.end is not None
        if peer.aborted:
            assert socket.aborted
        elif peer.end is None and socket.aborted:
            assert self.loop.time() > peer.closed_at + CLOSE_TIMEOUT - 0.1, "dropped before queued frames could be sent"
        if self.loop.time() > peer.closed_at + CLOSE_TIMEOUT + 0.1 and peer.closes:
            assert socket.ended
        if socket.close_code is not None:
            assert socket.close_code == CLOSE_NORMAL
        disconnects = [frame for frame in peer.log if frame["type"] == "disconnect"]
        assert disconnects in ([], [peer.due])
        if socket.close_code is not None and not peer.left and not peer.aborted and not socket.aborted:
            self._read(peer)
            disconnects = [frame for frame in peer.log if frame["type"] == "disconnect"]
            assert disconnects == ([] if peer.due is None else [peer.due])
        assert not [frame for frame in peer.log if frame["type"] == "pong"], "it is not read any more"
        assert not [name for name in Room.begun if "late" in json.loads(name)]

    def _check_ended(self, peer: Peer) -> None:
        connection = peer.connection
        assert connection.state is ConnectionState.CLOSED
        assert connection not in self.hub.connections.all()
        assert self.hub.connections.find(connection.sid) is not connection
        assert connection.sid not in self.hub.sessions.live
        assert not any(connection in due for due in self.hub.heartbeat._due.values())
        assert not connection.subscriptions
        assert connection.outbox.held == connection.outbox._size == 0

    def teardown(self) -> None:
        try:
            if hasattr(self, "hub"):
                self._finish()
        finally:
            self.loop.finish()

    def _finish(self) -> None:
        self.loop.call(Room.gate.set)
        for peer in self.peers:
            self._end(peer)
        self._check_that_nothing_is_left()
        for client in self.clients:
            restorable = client.restorable if client.sid else None
            if restorable is not None:
                stored = self.sessions.load(client.sid, ANN)
                assert (stored is not None) == restorable, "the store has what a restore needs"
                self._check_restore(client, restorable=restorable)

    def _check_that_nothing_is_left(self) -> None:
        self.loop.run_for(4)
        self.check()
        hub = self.hub
        assert not self.peers
        assert not hub.connections
        assert not hub.connections._by_any_sid
        assert not hub._streams
        assert not hub.heartbeat._due
        assert not hub.sessions.live
        assert not hub.control._users
        assert not hub.tasks.pending
        for task in self.drains:
            task.result()

    def _check_restore(self, client: Client, *, restorable: bool) -> None:
        sid = client.sid
        peer = self._open(client)
        self.loop.run_for(0.5)
        self._read(peer)
        welcome = peer.log[0]
        assert welcome["type"] == "welcome"
        assert welcome.get("restored", False) == restorable
        if restorable:
            assert self.hub.connections.find(sid) is peer.connection
        self._end(peer)
        self._check_that_nothing_is_left()


EXAMPLES, STEPS = 200, 30


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Lives]]:
    """A list whose last machine is told of each call of `close`, including the calls by the package itself."""
    close = Connection.close
    running: list[Lives] = []

    def recorded(connection: Connection, reason: DisconnectReason, *, reconnect: bool | None = None) -> None:
        machine = running[-1]
        machine.by_connection[connection].record_close(reason, reconnect, machine.loop.time())
        close(connection, reason, reconnect=reconnect)

    monkeypatch.setattr(Connection, "close", recorded)
    registry["Room"] = [Room]
    yield running
    del registry["Room"]


def test_each_reason_to_close_means_the_same_in_every_state(
    machines: list[Lives], caplog: pytest.LogCaptureFixture
) -> None:
    class Machine(Lives):
        def __init__(self) -> None:
            super().__init__()
            machines.append(self)

        def teardown(self) -> None:
            try:
                super().teardown()
                assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
            finally:
                caplog.clear()
                machines.clear()

    run_random_walks(Machine, walks=EXAMPLES, steps=STEPS)


@pytest.fixture
def lives(machines: list[Lives]) -> Iterator[Lives]:
    """The state machine, for tests that choose the order of events themselves."""
    machines.append(lives := Lives())
    lives.begin()
    yield lives
    lives.loop.finish()


def begin_restore(lives: Lives, *, ended: bool) -> tuple[Client, Peer]:
    """Return a client and the connection that restores its session. `ended`: whether the former one has ended."""
    lives.open(extended=True, frames=True, then=5)
    lives.check()
    lives.subscribe(0, slow=True, then=5)
    lives.let_handlers_finish()
    if ended:
        lives.lose_a_client(0, then=0)
        lives.loop.run_for(1)
    (client,) = lives.clients
    peer = lives._open(client)
    lives.loop.iterate(5)
    assert peer.connection.state is ConnectionState.OPENING, "it waits for `resubscribed`"
    return client, peer


def test_a_connection_that_is_forgotten_while_it_is_being_restored_leaves_no_record(lives: Lives) -> None:
    _, peer = begin_restore(lives, ended=True)
    lives.loop.call(lambda: peer.connection.close(DisconnectReason.REMOTE))
    lives.let_handlers_finish()
    lives._end(peer)
    lives._check_that_nothing_is_left()
    assert not lives.sessions._records


def test_a_connection_that_is_superseded_while_it_is_being_restored_leaves_the_former_record(lives: Lives) -> None:
    client, peer = begin_restore(lives, ended=False)
    lives.loop.call(lambda: peer.connection.close(DisconnectReason.SUPERSEDED))
    lives.let_handlers_finish()
    lives._finish()
    assert lives.sessions.load(client.sid, ANN)
