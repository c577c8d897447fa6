"""The world of the delivery model: a hub, its store, two clients, and the invariants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, cast

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
)

from reliable_cable.conf import read_settings
from reliable_cable.connection.commands import Commands
from reliable_cable.connection.connection import Connection
from reliable_cable.connection.lifecycle import end_connection, open_connection
from reliable_cable.connection.subscription import Subscription
from reliable_cable.consumer import CableConsumer
from reliable_cable.hub.hub import Hub
from reliable_cable.hub.subscriber import NOT_LIVE, SubscriberState
from reliable_cable.protocol.constants import Subprotocol
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.sessions.memory import MemorySessionStore
from reliable_cable.stores.streams.base import Advanced, Message, Published, StreamEvent, Transient
from tests.support.memory_socket import MemorySocket
from tests.support.virtual_loop import VirtualLoop

from .delivery_client import Client
from .delivery_model import (
    EVERYTHING,
    IDENTIFIERS,
    LIMIT,
    STREAMS,
    History,
    Store,
    Stored,
    Track,
)


class DeliveryWorld(RuleBasedStateMachine):
    """Two clients and two streams. Subclasses add the rules, which are the possible steps of a random walk."""

    frames = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.world = {stream: History() for stream in STREAMS}
        self.clients = [Client(self.world, name) for name in ("ann", "bob")]
        self.announcements: list[StreamEvent] = []
        #: Connections that their clients have given up, and tasks that open or end connections.
        self.zombies: list[Commands] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.openings: dict[Commands, asyncio.Task[None]] = {}
        self.transients = 0
        #: Whether a client has found an error. After that, nothing else is checked.
        self.failed = False

    @initialize(size=st.sampled_from([3, 6, 1000]), start=st.sampled_from([0, 20, 20]))
    def begin(self, size: int, start: int) -> None:
        self.size = size
        options = {"PING_INTERVAL": 60, "MAX_PENDING_SIZE": LIMIT, "HANDLER_THREADS": 0, "HISTORY_SIZE": size}
        settings = read_settings({"ENGINE": "memory", **options})
        self.store = store = Store(settings)
        for stream, history in self.world.items():
            history.epoch = partial(store.epoch, stream)
        engine = Engine(self.store, MemoryPresenceStore(settings), MemorySessionStore(settings))
        self.hub = self.loop.call(lambda: Hub(engine, settings))
        for client in self.clients:
            self._connect(client, "")
        self.loop.iterate(20)
        for client in self.clients:
            self._read(client, EVERYTHING)
            for name in IDENTIFIERS:
                client.subscribe(name, None)
            self._flush(client)
        self.loop.iterate(start)

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _marks(self) -> Mapping[str, int]:
        return {stream: len(history.messages) for stream, history in self.world.items()}

    def _connect(self, client: Client, sid: str) -> None:
        client.sid = ""
        client.socket = MemorySocket(frames=self.frames, stamp=self._marks)
        connection = Connection(
            self.hub,
            CableConsumer(),
            subprotocol=Subprotocol.EXTENDED_JSON,
            identity={"user": client.name},
            authenticated_at=self.hub.engine.session_clock.moment(),
            ping_interval=60,
            transport=client.socket,
        )
        commands = client.commands = Commands(connection)
        client.last_sid = sid
        self.openings[commands] = self._spawn(lambda: open_connection(commands, sid or None))

    def _spawn(self, coroutine: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task = self.loop.call(lambda: self.loop.create_task(coroutine()))
        self.tasks.append(task)
        return task

    def _flush(self, client: Client, events: Sequence[StreamEvent] = ()) -> None:
        """Deliver events of the store, and then send the commands that a client has queued."""
        outgoing, client.outgoing = client.outgoing, []

        def send() -> None:
            for event in events:
                self.store.deliver(event)
            for command in outgoing:
                client.connection.receive(json.dumps(command))

        if events or outgoing:
            self.loop.call(send)

    def _read(self, client: Client, count: int) -> None:
        if client.socket is not None:
            for frame, marks in self.loop.call(lambda: client.socket.read(count)):  # type: ignore[union-attr]
                self.failed = True
                client.handle(frame, marks)
                self.failed = False
            self._flush(client)

    def _drop(self, client: Client, *, noticed: bool = True) -> None:
        commands = client.commands
        if commands is None:
            return
        client.sid = client.sid or client.last_sid
        client.dropped()
        if noticed:
            self._end(commands)
        else:
            self.zombies.append(commands)

    def _end(self, commands: Commands) -> None:
        socket = cast(MemorySocket, commands.connection.transport)
        self.loop.call(socket.abort)

        async def end() -> None:
            await asyncio.wait([self.openings[commands]])
            await end_connection(commands)

        self._spawn(end)

    # -- invariants ----------------------------------------------------------------------------------------------------

    @invariant()
    def end_what_the_server_has_closed(self) -> None:
        for client in self.clients:
            if client.reads and client.socket is not None and client.socket.readable:
                self._read(client, EVERYTHING)
            if client.socket is not None and client.socket.ended:
                self._read(client, EVERYTHING)
                self._drop(client)
        for commands in list(self.zombies):
            if cast(MemorySocket, commands.connection.transport).ended:
                self.zombies.remove(commands)
                self._end(commands)

    @invariant()
    def check_subscribers(self) -> None:
        if not hasattr(self, "hub"):
            return
        assert not self.loop.errors
        for stream in self.hub._streams.values():
            queued = sum(isinstance(item, Entry) for item in stream._queue)
            assert stream.serial - stream._fanned_out == queued
            for group in stream.groups.values():
                for subscriber in group.subscribers:
                    assert subscriber.state in (SubscriberState.CATCHING_UP, SubscriberState.LIVE)
        for commands in [*self.zombies, *(each.commands for each in self.clients if each.commands is not None)]:
            self._check_connection(commands)

    def _check_connection(self, commands: Commands) -> None:
        box = commands.connection.outbox
        held = 0
        for subscription in self._subscriptions(commands).values():
            held += 0 if subscription._replay is None else subscription._replay._held
            for subscribed in subscription.streams.values():
                held += sum(len(text) for text in subscribed._held or ())
                assert (subscribed.state is SubscriberState.LIVE) == (subscribed.at != NOT_LIVE)
                if subscribed.state in (SubscriberState.LIVE, SubscriberState.CATCHING_UP):
                    stream = subscribed.stream
                    assert subscribed.at <= stream.serial
                    assert isinstance(subscribed.cursor, StreamPosition)
                    assert subscribed in stream.group(subscribed).subscribers
                else:
                    assert not subscribed._held
        assert box.held == held
        assert box._size == sum(map(len, box._queue))
        assert box._size + held <= LIMIT

    @staticmethod
    def _subscriptions(commands: Commands) -> Mapping[str, Subscription]:
        return commands.subscriptions

    # -- the end -------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "hub") and not self.failed:
                self._finish()
        finally:
            self.loop.finish()

    def _settle(self) -> None:
        """Run until nothing more happens, while all clients read everything."""
        for _ in range(12):
            for client in self.clients:
                for name, sub in client.subscribed.items():
                    if sub.restored and client.commands is not None:
                        client.request(name, client.honest(name))
                self._flush(client)
            reading = True
            while reading:
                for client in self.clients:
                    self._read(client, EVERYTHING)
                self.loop.iterate(10)
                reading = any(client.socket is not None and client.socket.readable for client in self.clients)
            self.loop.run_for(0.3)
            self.end_what_the_server_has_closed()
            self.check_subscribers()

    def _finish(self) -> None:
        self.store.broken = False
        for stream in STREAMS:
            self._deliver(Advanced(stream))
        self._settle()
        wanted = {(client.name, name): self._tracked(client, name) for client in self.clients for name in IDENTIFIERS}
        for stream in STREAMS:
            self._deliver(self._append(stream))
            self._deliver(self._make_transient(stream))
        self._settle()
        for client in self.clients:
            for name in IDENTIFIERS:
                for stream in wanted[client.name, name]:
                    sub, last = client.subscribed[name], self.transients - STREAMS[::-1].index(stream)
                    assert sub.tracks[stream].due == len(self.world[stream].messages), "the last message is missing"
                    assert sub.last_transient.get(stream) == last, "the last transient message is missing"
        for client in self.clients:
            self._drop(client)
        while self.zombies:
            self._end(self.zombies.pop())
        self.loop.run_for(3)
        self._check_end()

    def _tracked(self, client: Client, name: str) -> list[str]:
        """Check a subscription that is idle. Return its streams."""
        if client.commands is None:
            return []
        sub = client.subscribed[name]
        subscription = self._subscriptions(client.commands).get(name)
        assert sub.state in ("absent", "active"), sub.state
        assert (subscription is not None) == (sub.state == "active")
        assert not sub.requests, "a request was not answered"
        if subscription is None:
            return []
        assert subscription._replay is None
        for stream, subscribed in subscription.streams.items():
            assert subscribed.state is SubscriberState.LIVE
            history, track = self.world[stream], sub.tracks.setdefault(stream, Track(0, told=True))
            due, end = track.floor if track.due is None else track.due, len(history.messages)
            assert track.told or client.skippable(stream, due, end, fresh=track.due is None)
        return list(subscription.streams)

    def _check_end(self) -> None:
        for task in self.tasks:
            assert task.done()
            task.result()
        assert not self.loop.errors
        assert not self.hub.connections
        assert not self.hub._streams
        assert not self.hub.tasks.pending
        assert not self.hub.heartbeat._due
        assert not self.hub.sessions.live
        for client in self.clients:
            assert client.commands is None

    def _append(self, stream: str, exclude: str = "", pad: int = 0) -> Published:
        history = self.world[stream]
        if history.rewound:
            # A store that was restored from a backup must not use the offsets of lost messages again.
            self.store.forget(stream)
            history.rewound = False
        self.store.now += 1
        data = json.dumps({"n": len(history.messages), "pad": "x" * pad})
        position = self.store.append([(stream, Message(data, exclude))])[0]
        history.add(Stored(position.epoch, position.offset, exclude, self.store.now))
        history.damaged = history.damaged or position.offset > self.size
        return Published(stream, position.epoch, Entry(position.offset, data, exclude))

    def _deliver(self, event: StreamEvent) -> None:
        self.loop.call(lambda: self.store.deliver(event))

    def _make_transient(self, stream: str, exclude: str = "", pad: int = 0) -> Transient:
        self.transients += 1
        message = {"t": self.transients, "stream": stream, "exclude": exclude, "pad": "x" * pad}
        return Transient(stream, json.dumps(message), exclude)
