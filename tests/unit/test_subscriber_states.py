"""Delivery to subscribers: a random walk through their states, against a model of what clients must see.

Two clients subscribe to two streams over the real connections, replays and hub. The test controls the time, the
sockets, and what the store announces.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as configure
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reliable_cable import Channel, action
from reliable_cable.channel import registry
from reliable_cable.concurrency import threads
from reliable_cable.conf import CableSettings, read_settings
from reliable_cable.connection.commands import Commands
from reliable_cable.connection.connection import Connection
from reliable_cable.connection.lifecycle import end_connection, open_connection
from reliable_cable.connection.stream_ids import stream_alias
from reliable_cable.connection.subscription import Subscription
from reliable_cable.exceptions import StoreError
from reliable_cable.hub import fanout
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

from .hubs import UnreliableStore
from .wire import identifier

#: The setting `MAX_PENDING_SIZE`.
LIMIT = 4000
STREAMS = ("a", "b")
#: Two identifiers that share a stream, and the streams that they start.
PARAMS = {identifier("Room", streams=streams): streams for streams in (("a",), ("a", "b"))}
IDENTIFIERS = tuple(PARAMS)
EVERYTHING = 10**9


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        for stream in self.params["streams"]:
            self.stream_from(stream)

    @action
    async def start(self, data: Any) -> None:
        self.stream_from(data["stream"])
        self.transmit({"started": data["stream"]})

    @action
    async def stop(self, data: Any) -> None:
        self.stop_stream_from(data["stream"])
        self.transmit({"stopped": data["stream"]})


class Store(UnreliableStore):
    """Every method fails while `broken` is set. Each append has a time of its own."""

    def __init__(self, settings: CableSettings) -> None:
        super().__init__(settings)
        self.now = 1_000_000.0
        self.clock = lambda: self.now

    def epoch(self, name: str) -> str:
        """Return the epoch of a stream."""
        stream = self._streams.get(name)
        return "" if stream is None else stream.epoch

    def lose_newest(self, name: str, count: int) -> int:
        """Lose up to `count` of a stream's newest messages. Return how many were lost."""
        stream = self._streams.get(name)
        lost = 0
        while stream is not None and stream.kept and lost < count:
            stream.kept.pop()
            stream.tail -= 1
            lost += 1
        return lost

    async def _run(self, call: Callable[[], Any]) -> Any:
        if self.broken:
            await asyncio.sleep(0)
            raise StoreError("broken")
        return await super()._run(call)


# -- what was broadcast -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Stored:
    """A message that the store accepted."""

    epoch: str
    offset: int
    exclude: str
    time: float
    #: Whether the store has lost it again. A subscriber may have received it before.
    vanished: bool = False


class History:
    """All messages of a stream that the store ever accepted, in order."""

    def __init__(self) -> None:
        self.messages: list[Stored] = []
        self.index: dict[tuple[str, int], int] = {}
        #: Whether messages may have been lost: trimmed, forgotten or vanished.
        self.damaged = False
        #: The next append begins a new epoch.
        self.rewound = False
        #: Returns the epoch of the stream in the store.
        self.epoch: Callable[[], str] = lambda: ""

    def add(self, message: Stored) -> None:
        self.index[message.epoch, message.offset] = len(self.messages)
        self.messages.append(message)

    def after(self, position: tuple[str, int]) -> int | None:
        """Return the index of the first message after a position; None if there never was such a position."""
        epoch, offset = position
        if offset == 0:
            return self.index.get((epoch, 1))
        found = self.index.get(position)
        return None if found is None else found + 1


# -- what a client sees -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Request:
    """A request for history that is not answered."""

    streams: Mapping[str, tuple[str, int]]
    since: float | None
    #: Whether it names no other positions than those of the last messages that the client received.
    honest: bool = True
    #: The streams for which it names an epoch that has ended.
    outdated: tuple[str, ...] = ()
    #: Whether it is the first one after a restore.
    restored: bool = False
    #: Whether it came with the subscribe.
    initial: bool = False
    #: The streams that the subscription had when the request was sent.
    tracks: dict[str, Track] = field(default_factory=dict)
    #: The streams of which an entry was received in response.
    begun: set[str] = field(default_factory=set)

    def position(self, stream: str, identifier: str, stream_id: str | None = None) -> tuple[str, int] | None:
        """Return the position that the request names for a stream."""
        if self.restored:
            return self.streams.get(stream_id or stream)
        return self.streams.get(stream_alias(stream, identifier)) or self.streams.get(stream)

    def body(self) -> dict[str, Any]:
        """Return the request as it is sent."""
        streams = {name: {"epoch": epoch, "offset": offset} for name, (epoch, offset) in self.streams.items()}
        return {"streams": streams, **({} if self.since is None else {"since": self.since})}


@dataclass(slots=True)
class Track:
    """How far a client has received a stream under one identifier."""

    #: All messages from this index on are due, if the client has received none.
    floor: int
    #: The index of the next message that is due; None before the first message.
    due: int | None = None
    epoch: str | None = None
    #: Whether the client was told of a loss since the last message.
    told: bool = False
    stream_id: str | None = None


class Subscribed:
    """One identifier of a client."""

    def __init__(self) -> None:
        #: "absent", "pending", "active", "leaving" (until the server has handled the command), or "away".
        self.state = "absent"
        self.confirmable = False
        self.requests: deque[Request] = deque()
        #: All requests since the subscribe. Each of them moved the position from which a restore sends entries to a
        #: client that has received none.
        self.sent: list[Request] = []
        self.tracks: dict[str, Track] = {}
        #: How many commands to start or stop a stream are not answered.
        self.starting: Counter[str] = Counter()
        self.stopping: Counter[str] = Counter()
        #: Streams that may have been started without an answer.
        self.uncertain: set[str] = set()
        self.stream_ids: set[str] = set()
        #: Whether the server waits for a history request since a restore.
        self.restored = False
        #: Whether it was confirmed on this connection, so that another subscribe is ignored.
        self.confirmed = False
        #: The request of a subscribe that replaces a restored subscription.
        self.refresh: tuple[Request | None] | None = None
        self.notice = False
        self.last_transient: dict[str, int] = {}
        #: A subscribe that was sent while leaving.
        self.again: tuple[Request | None] | None = None
        self.markers: deque[str] = deque()


class Client:
    """A client as the protocol describes it. It checks each frame that it reads.

    Args:
        world: what was broadcast, by stream.
        name: its name.
    """

    def __init__(self, world: Mapping[str, History], name: str) -> None:
        self.world = world
        self.name = name
        self.commands: Commands | None = None
        self.socket: MemorySocket | None = None
        #: Its session id; "" before the welcome. The one that it had before is kept for another attempt.
        self.sid = ""
        self.last_sid = ""
        #: The session ids by which a broadcast can exclude it, and all that it ever had.
        self.chain: tuple[str, ...] = ()
        self.sids: set[str] = set()
        self.positions: dict[str, tuple[str, int]] = {}
        self.subscribed = {name: Subscribed() for name in IDENTIFIERS}
        #: Whether it requests the history of restored subscriptions by itself.
        self.prompt = True
        #: Whether it reads each frame at once.
        self.reads = True
        self._markers = 0
        #: The commands that it is going to send.
        self.outgoing: list[dict[str, Any]] = []

    # -- reading ------------------------------------------------------------------------------------------------------

    def handle(self, frame: Mapping[str, Any], marks: Mapping[str, int]) -> None:
        """Check a frame.

        Args:
            frame: the frame.
            marks: the number of messages of each stream when the server wrote the frame.
        """
        kind = frame.get("type")
        if kind == "ping":
            return
        if kind == "welcome":
            self._welcomed(frame)
            return
        assert self.sid, "the welcome comes first"
        name = str(frame["identifier"])
        if name.startswith("marker "):
            self._left(name)
            return
        sub = self.subscribed[name]
        if kind == "confirm_subscription":
            self._confirmed(name, sub, marks)
            return
        assert sub.state in ("active", "leaving"), f"no frame before the confirmation or after the end: {frame}"
        if kind == "loss":
            sub.notice = True
        elif kind == "reject_history":
            self._rejected(sub)
        elif kind == "confirm_history":
            self._complete(name, sub)
        elif kind is not None:
            raise AssertionError(frame)
        elif "stream_id" in frame:
            self._broadcast(name, sub, frame, marks)
        elif "t" in frame["message"]:
            self._transient(sub, frame["message"])
        else:
            self._answer(sub, frame["message"], marks)

    def _welcomed(self, frame: Mapping[str, Any]) -> None:
        self.sid = frame["sid"]
        self.sids.add(self.sid)
        self.chain = (self.sid, *self.chain[:7]) if frame.get("restored") else (self.sid,)
        for name in frame.get("restored_ids", ()):
            sub = self.subscribed[name]
            if sub.state != "away":
                sub.__init__()  # type: ignore[misc]
                sub.uncertain = set(STREAMS)
            sub.state, sub.restored = "active", True
            if self.prompt:
                self.request(name, self.honest(name))
        for name, sub in self.subscribed.items():
            if sub.state == "away":
                self.subscribe(name, self.honest(name))

    def _confirmed(self, name: str, sub: Subscribed, marks: Mapping[str, int]) -> None:
        assert sub.confirmable, "one confirmation for each subscribe"
        if sub.refresh is not None:
            request, ids = sub.refresh[0], sub.stream_ids
            sub.__init__()  # type: ignore[misc]
            sub.stream_ids = ids
            self._pending(sub, request)
        sub.confirmable, sub.confirmed = False, True
        sub.tracks = {stream: Track(marks[stream]) for stream in PARAMS[name]}
        for request in sub.requests:
            request.tracks = dict(sub.tracks)
        if sub.state == "pending":
            sub.state = "active"

    def _left(self, marker: str) -> None:
        name = marker.split(" ", 2)[2]
        sub = self.subscribed[name]
        if not sub.markers or sub.markers[0] != marker:
            return
        again, ids = sub.again, sub.stream_ids
        sub.__init__()  # type: ignore[misc]
        sub.stream_ids = ids
        if again is not None:
            self._pending(sub, again[0])

    def _rejected(self, sub: Subscribed) -> None:
        streams = {*sub.tracks, *sub.starting, *sub.uncertain}
        damaged = any(self.world[stream].damaged for stream in streams)
        for track in sub.tracks.values():
            track.told = True
        if sub.notice:
            sub.notice = False
            assert damaged, "told of a loss, but nothing was lost"
            return
        assert sub.requests, "an answer without a request"
        request = sub.requests.popleft()
        assert damaged or not request.honest, "rejected, but nothing was lost"

    def _complete(self, name: str, sub: Subscribed) -> None:
        assert sub.requests, "an answer without a request"
        request = sub.requests.popleft()
        for stream, track in sub.tracks.items():
            if self._unsure(sub, stream) or request.tracks.get(stream) is not track:
                continue
            assert stream not in request.outdated, "entries of an epoch that has ended cannot be complete"
            position = request.position(stream, name, track.stream_id)
            if position is None:
                # A store knows nothing about the time of messages in an epoch that has ended.
                if request.since is not None and stream not in request.begun:
                    track.told = track.told or self.world[stream].damaged
                continue
            if stream not in request.begun:
                start = self.world[stream].after(position)
                if start is not None:
                    track.due = max(start, track.due or 0)
                    track.epoch = position[0]
                track.told = start is None
                if start is None and position[1] == 0:
                    track.told = False

    def _broadcast(self, name: str, sub: Subscribed, frame: Mapping[str, Any], marks: Mapping[str, int]) -> None:
        stream_id, epoch, offset = frame["stream_id"], frame["epoch"], frame["offset"]
        stream = stream_id.partition("#")[0]
        assert stream_id in (stream, stream_alias(stream, name))
        history = self.world[stream]
        index = history.index[epoch, offset]
        message = history.messages[index]
        assert frame["message"]["n"] == index
        assert message.exclude not in self.chain, "it is excluded"
        track = sub.tracks.get(stream)
        if track is None:
            assert self._unsure(sub, stream), f"the subscription does not have the stream: {frame}"
            track = sub.tracks[stream] = Track(marks[stream])
        fault = self._fault(sub, track, stream, index)
        if fault is not None:
            request = self._begins(name, sub.requests, stream, index, stream_id)
            if request is not None:
                request.begun.add(stream)
            elif track.due is None:
                request = self._begins(name, sub.sent, stream, index, stream_id)
            assert request is not None, f"{fault}: {stream} {index} {message}, {track}"
        track.due, track.epoch, track.told, track.stream_id = index + 1, epoch, False, stream_id
        self.positions[stream_id] = (epoch, offset)
        sub.stream_ids.add(stream_id)

    def _unsure(self, sub: Subscribed, stream: str) -> bool:
        return bool(sub.starting[stream] or sub.stopping[stream] or stream in sub.uncertain)

    def _begins(
        self, name: str, requests: Iterable[Request], stream: str, index: int, stream_id: str
    ) -> Request | None:
        """Return the request that this message is the first response to, if there is one."""
        history = self.world[stream]
        message = history.messages[index]
        for request in requests:
            if stream in request.begun:
                continue
            position = request.position(stream, name, stream_id)
            if position is not None:
                start = history.after(position)
                if start is not None and position[0] == message.epoch and self.skippable(stream, start, index):
                    return request
            elif request.since is not None and message.time >= request.since:
                first = index
                while first and history.messages[first - 1].epoch == message.epoch:
                    if history.messages[first - 1].time < request.since:
                        break
                    first -= 1
                if self.skippable(stream, first, index):
                    return request
        return None

    def _fault(self, sub: Subscribed, track: Track, stream: str, index: int) -> str | None:
        """Return what is wrong if this message is not the response to a request."""
        message = self.world[stream].messages[index]
        if track.due is not None and index < track.due:
            return "twice, or out of order"
        if track.told:
            return None
        if track.due is None:
            # A request that came with the subscribe is answered before live messages.
            # An epoch that ends at this moment may make the answer to a `since` begin too early.
            exact = not self.world[stream].damaged
            named = (
                stream in each.streams or (exact and each.since is not None) for each in sub.requests if each.initial
            )
            if any(named):
                return "not from the requested position"
            seen = index < track.floor or self.skippable(stream, track.floor, index, fresh=True)
            return None if seen else "skipped"
        if track.epoch not in (None, message.epoch):
            return "an epoch ended in silence"
        return None if self.skippable(stream, track.due, index) else "skipped"

    def skippable(self, stream: str, first: int, end: int, *, fresh: bool = False) -> bool:
        """Return whether this client needs none of the messages from `first` to before `end`.

        Args:
            stream: the stream.
            first: the index of the first message.
            end: the index after the last message.
            fresh: whether the client has received no message so far. Then nobody may know that an epoch has ended: the
                stream did not exist when the client subscribed, and may not exist now.
        """
        history = self.world[stream]
        epoch = history.epoch()
        return first <= end and all(
            message.vanished or message.exclude in self.sids or (fresh and message.epoch != epoch)
            for message in history.messages[first:end]
        )

    def _transient(self, sub: Subscribed, message: Mapping[str, Any]) -> None:
        assert message["exclude"] not in self.chain, "it is excluded"
        assert message["t"] > sub.last_transient.get(message["stream"], 0), "twice, or out of order"
        sub.last_transient[message["stream"]] = message["t"]

    def _answer(self, sub: Subscribed, message: Mapping[str, Any], marks: Mapping[str, int]) -> None:
        if (stream := message.get("started")) is not None:
            sub.starting[stream] -= 1
            sub.tracks.setdefault(stream, Track(marks[stream]))
        else:
            stream = message["stopped"]
            sub.stopping[stream] -= 1
            sub.tracks.pop(stream, None)
        if not sub.starting[stream] and not sub.stopping[stream]:
            sub.uncertain.discard(stream)

    # -- sending ------------------------------------------------------------------------------------------------------

    def send(self, command: str, name: str, **body: Any) -> None:
        """Send a command."""
        self.outgoing.append({"command": command, "identifier": name, **body})

    def honest(self, name: str) -> Request | None:
        """Return a request with the positions of the last messages that were received under an identifier."""
        sub = self.subscribed[name]
        streams = {each: self.positions[each] for each in sorted(sub.stream_ids)}
        return Request(streams, None) if streams else None

    def subscribe(self, name: str, request: Request | None) -> None:
        """Subscribe."""
        sub = self.subscribed[name]
        if sub.state == "leaving":
            sub.again = (request,)
        elif sub.state == "active":
            sub.state, sub.confirmable, sub.refresh, sub.restored = "leaving", True, (request,), False
        else:
            ids = sub.stream_ids
            sub.__init__()  # type: ignore[misc]
            sub.stream_ids = ids
            self._pending(sub, request)
        self.send("subscribe", name, **({} if request is None else {"history": request.body()}))

    @staticmethod
    def _pending(sub: Subscribed, request: Request | None) -> None:
        sub.state, sub.confirmable = "pending", True
        if request is not None:
            request.initial = True
            sub.requests.append(request)
            sub.sent.append(request)

    def request(self, name: str, request: Request | None) -> None:
        """Request history."""
        sub = self.subscribed[name]
        request = request or Request({}, None)
        request.restored, sub.restored = sub.restored, False
        request.tracks = dict(sub.tracks)
        sub.requests.append(request)
        sub.sent.append(request)
        self.send("history", name, history=request.body())

    def unsubscribe(self, name: str) -> None:
        """Unsubscribe. The answer to another command tells when the server has handled it."""
        sub = self.subscribed[name]
        sub.state, sub.restored = "leaving", False
        self._markers += 1
        sub.markers.append(f"marker {self._markers} {name}")
        self.send("unsubscribe", name)
        self.send("presence", sub.markers[-1])

    def dropped(self) -> None:
        """Forget what a client forgets when its connection breaks."""
        self.commands = self.socket = None
        self.outgoing.clear()
        for sub in self.subscribed.values():
            if sub.state not in ("active", "away"):
                ids = sub.stream_ids
                sub.__init__()  # type: ignore[misc]
                sub.stream_ids = ids
                continue
            sub.state = "away"
            sub.uncertain |= {stream for stream in STREAMS if sub.starting[stream] or sub.stopping[stream]}
            sub.starting.clear()
            sub.stopping.clear()
            sub.requests.clear()
            sub.restored = sub.notice = sub.confirmed = False

    @property
    def connection(self) -> Connection:
        """The server side of its connection."""
        assert self.commands is not None
        return self.commands.connection


# -- the machine ------------------------------------------------------------------------------------------------------

clients = st.integers(0, 1)
streams = st.sampled_from(STREAMS)
identifiers = st.sampled_from(IDENTIFIERS)
#: How many iterations the event loop makes after a step.
iterations = st.sampled_from([0, 1, 2, 5, 20])


class Delivery(RuleBasedStateMachine):
    """Two clients, two streams, and everything that can happen between them."""

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
        #: Whether a client has seen something wrong. Nothing else is checked then.
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

    # -- broadcasts ---------------------------------------------------------------------------------------------------

    @rule(
        stream=streams,
        count=st.integers(1, 6),
        exclude=st.sampled_from([None, None, None, 0, 1]),
        pad=st.sampled_from([0, 0, 300]),
        announced=st.sampled_from(["together", "one by one", "one by one", ""]),
        then=iterations,
    )
    def append(self, stream: str, count: int, exclude: int | None, pad: int, announced: str, then: int) -> None:
        sid = "" if exclude is None else self.clients[exclude].sid
        events = [self._append(stream, sid, pad) for _ in range(count)]
        self.announcements += events
        if announced == "together":
            self.loop.call(lambda: [self.store.deliver(event) for event in events])
        elif announced:
            for event in events:
                self._deliver(event)
        self.loop.iterate(then)

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

    @precondition(lambda self: self.announcements)
    @rule(data=st.data(), then=iterations)
    def announce_late_or_again(self, data: st.DataObject, then: int) -> None:
        newest = len(self.announcements) - 1
        self._deliver(self.announcements[newest - data.draw(st.integers(0, min(newest, 12)))])
        self.loop.iterate(then)

    @rule(stream=streams, then=iterations)
    def announce_an_advance(self, stream: str, then: int) -> None:
        self._deliver(Advanced(stream))
        self.loop.iterate(then)

    @rule(
        stream=streams, exclude=st.sampled_from([None, None, 0, 1]), pad=st.sampled_from([0, 0, 300]), then=iterations
    )
    def send_a_transient_message(self, stream: str, exclude: int | None, pad: int, then: int) -> None:
        sid = "" if exclude is None else self.clients[exclude].sid
        self._deliver(self._make_transient(stream, sid, pad))
        self.loop.iterate(then)

    def _make_transient(self, stream: str, exclude: str = "", pad: int = 0) -> Transient:
        self.transients += 1
        message = {"t": self.transients, "stream": stream, "exclude": exclude, "pad": "x" * pad}
        return Transient(stream, json.dumps(message), exclude)

    # -- the store ----------------------------------------------------------------------------------------------------

    @rule(stream=streams, announced=st.booleans(), then=iterations)
    def forget(self, stream: str, announced: bool, then: int) -> None:
        self.store.forget(stream)
        self.world[stream].damaged = True
        self.world[stream].rewound = False
        if announced:
            self._deliver(Advanced(stream))
        self.loop.iterate(then)

    @rule(stream=streams, count=st.integers(1, 3), announced=st.booleans(), then=iterations)
    def lose_the_newest(self, stream: str, count: int, announced: bool, then: int) -> None:
        history = self.world[stream]
        lost = self.store.lose_newest(stream, count)
        if lost:
            history.damaged = history.rewound = True
            for message in [each for each in history.messages if not each.vanished][-lost:]:
                message.vanished = True
        if announced:
            self._deliver(Advanced(stream))
        self.loop.iterate(then)

    @rule(then=iterations)
    def break_or_mend_the_store(self, then: int) -> None:
        self.store.broken = not self.store.broken
        self.loop.iterate(then)

    # -- commands -----------------------------------------------------------------------------------------------------

    @rule(client=clients, name=identifiers, how=st.sampled_from(["plain", "honest", "since"]), then=iterations)
    def subscribe(self, client: int, name: str, how: str, then: int) -> None:
        one = self.clients[client]
        sub = one.subscribed[name]
        if not one.sid or one.commands is None:
            return
        again = (sub.state == "active" and not sub.confirmed) or (
            sub.state == "leaving" and sub.again is None and sub.refresh is None
        )
        if sub.state == "absent" or again:
            request = one.honest(name) if how == "honest" else self._since() if how == "since" else None
            one.subscribe(name, request)
        elif sub.state in ("pending", "active"):
            one.send("subscribe", name)  # a repeat is ignored
        self._flush(one)
        self.loop.iterate(then)

    @rule(client=clients, name=identifiers, then=iterations)
    def unsubscribe(self, client: int, name: str, then: int) -> None:
        one = self.clients[client]
        if one.sid and one.commands is not None and one.subscribed[name].state in ("pending", "active"):
            one.unsubscribe(name)
            self._flush(one)
            self.loop.iterate(then)

    @rule(
        client=clients,
        name=identifiers,
        how=st.sampled_from(["honest", "honest", "old", "other epoch", "beyond", "since", "empty", "empty", "empty"]),
        back=st.integers(0, 5),
        repeat=st.sampled_from([1, 1, 2]),
        before=st.sampled_from([0, 0, 3]),
        then=iterations,
    )
    def request_history(self, client: int, name: str, how: str, back: int, repeat: int, before: int, then: int) -> None:
        one = self.clients[client]
        if one.commands is None or one.subscribed[name].state != "active":
            return
        for _ in range(repeat):
            one.request(name, self._make_request(one, name, how, back))
        # Messages that are announced at the same moment are still queued when the request is handled.
        self._flush(one, [self._append("a") for _ in range(before)])
        self.loop.iterate(then)

    def _make_request(self, client: Client, name: str, how: str, back: int) -> Request | None:
        if how == "honest" or client.subscribed[name].restored:
            return client.honest(name)
        if how == "since":
            return self._since()
        if how == "empty":
            return None
        positions: dict[str, tuple[str, int]] = {}
        outdated: list[str] = []
        for stream in PARAMS[name]:
            messages = self.world[stream].messages
            if not messages:
                continue
            last = messages[-1]
            epoch, offset = last.epoch, max(last.offset - back, 0)
            if how == "beyond":
                offset = last.offset + 1 + back
            elif how == "other epoch":
                ended = [each for each in messages if each.epoch != last.epoch]
                if not ended:
                    continue
                epoch, offset = ended[-1].epoch, max(ended[-1].offset - back, 0)
                outdated.append(stream)
            positions |= {stream: (epoch, offset), stream_alias(stream, name): (epoch, offset)}
        return Request(positions, None, honest=False, outdated=tuple(outdated))

    def _since(self) -> Request:
        return Request({}, self.store.now - 2, honest=False)

    @rule(client=clients, name=identifiers, what=st.sampled_from(["start", "stop"]), stream=streams, then=iterations)
    def start_or_stop_a_stream(self, client: int, name: str, what: str, stream: str, then: int) -> None:
        one = self.clients[client]
        sub = one.subscribed[name]
        if one.commands is None or sub.state != "active":
            return
        (sub.starting if what == "start" else sub.stopping)[stream] += 1
        one.send("message", name, data=json.dumps({"action": what, "stream": stream}))
        self._flush(one)
        self.loop.iterate(then)

    # -- sockets and time ---------------------------------------------------------------------------------------------

    @rule(client=clients)
    def begin_or_stop_to_read(self, client: int) -> None:
        self.clients[client].reads = not self.clients[client].reads

    @rule(client=clients, count=st.sampled_from([1, 2, 5]), then=iterations)
    def read(self, client: int, count: int, then: int) -> None:
        self._read(self.clients[client], count)
        self.loop.iterate(then)

    @rule(count=st.sampled_from([1, 3, 10, 50]))
    def let_the_loop_run(self, count: int) -> None:
        self.loop.iterate(count)

    @rule(seconds=st.sampled_from([0.01, 0.5, 0.6, 3.0, 11.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.run_for(seconds)

    @rule(client=clients, noticed=st.booleans(), away=st.sampled_from([0, 1, 5, 20]))
    def break_a_connection(self, client: int, noticed: bool, away: int) -> None:
        self._drop(self.clients[client], noticed=noticed)
        self.loop.iterate(away)

    @rule(
        client=clients,
        restored=st.sampled_from([True, True, True, False]),
        noticed=st.booleans(),
        prompt=st.sampled_from([True, True, False]),
        then=iterations,
    )
    def connect(self, client: int, restored: bool, noticed: bool, prompt: bool, then: int) -> None:
        one = self.clients[client]
        self._drop(one, noticed=noticed)
        one.prompt = prompt
        self._connect(one, one.sid if restored else "")
        self.loop.iterate(then)

    @precondition(lambda self: self.zombies)
    @rule()
    def notice_a_broken_connection(self) -> None:
        self._end(self.zombies.pop(0))

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _marks(self) -> Mapping[str, int]:
        return {stream: len(history.messages) for stream, history in self.world.items()}

    def _connect(self, client: Client, sid: str) -> None:
        client.sid = ""
        client.socket = MemorySocket(frames=self.frames, stamp=self._marks)
        connection = Connection(
            self.hub,
            None,
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
        """Send the commands that a client has decided to send, after events of the store."""
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

    # -- what always holds --------------------------------------------------------------------------------------------

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
        # Frames can still be held while the queue is almost full.
        assert box._size + held <= LIMIT + LIMIT // 4

    @staticmethod
    def _subscriptions(commands: Commands) -> Mapping[str, Subscription]:
        return commands.subscriptions

    # -- the end ------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            if hasattr(self, "hub") and not self.failed:
                self._finish()
        finally:
            self.loop.finish()

    def _settle(self) -> None:
        """Run until nothing happens any more. All clients read everything."""
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


@pytest.fixture
def _instant(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Handlers would wait for a thread now and then, if another test has left a database connection.
    monkeypatch.setattr(threads, "_connected", set())
    monkeypatch.setattr("reliable_cable.stores.streams.memory.YOUNG_TIME", 0.0)
    monkeypatch.setattr(fanout, "POLICY", replace(fanout.POLICY, budget=2, shortest_pause=math.inf))
    told = Subscription.messages_lost

    def messages_lost(subscription: Subscription) -> None:
        # Without this, the client could not tell a notice from the answer to its request.
        mark = {"type": "loss", "identifier": subscription.identifier}
        subscription.connection.outbox.push(json.dumps(mark))
        told(subscription)

    monkeypatch.setattr(Subscription, "messages_lost", messages_lost)
    registry["Room"] = [Room]
    yield
    del registry["Room"]


@pytest.mark.usefixtures("_instant")
@pytest.mark.parametrize("frames", [True, False], ids=["frames", "send"])
def test_each_client_receives_each_message_once_in_order_or_is_told_of_a_loss(
    frames: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Machine(Delivery):
        def teardown(self) -> None:
            try:
                super().teardown()
                check_log(caplog)
            finally:
                caplog.clear()

    Machine.frames = frames
    run_state_machine_as_test(
        Machine,
        settings=configure(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )


EXAMPLES, STEPS = 100, 40


def check_log(caplog: pytest.LogCaptureFixture) -> None:
    """Check that no defect was logged. Outages may be."""
    for record in caplog.records:
        if record.levelno >= logging.ERROR and record.exc_info and record.exc_info[1] is not None:
            assert isinstance(record.exc_info[1], StoreError), record.getMessage()


@pytest.mark.usefixtures("_instant")
def test_messages_that_are_queued_when_history_is_requested_are_sent() -> None:
    """A case that the random walk finds too rarely."""
    machine = Delivery()
    machine.begin(size=1000, start=20)
    machine.let_the_loop_run(50)
    machine.end_what_the_server_has_closed()
    for name in IDENTIFIERS:
        machine.request_history(client=1, name=name, how="empty", back=0, repeat=1, before=3, then=20)
        machine.end_what_the_server_has_closed()
    machine.teardown()
