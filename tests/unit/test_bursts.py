"""More at once than may wait for a connection: a healthy client catches up from the history, a stuck one is dropped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as configure
from hypothesis import strategies as st

from reliable_cable import Channel
from reliable_cable.broadcasting import abroadcast
from reliable_cable.channel import registry
from reliable_cable.concurrency import threads
from reliable_cable.connection import outbox
from reliable_cable.connection.connection import Connection
from reliable_cable.connection.subscription import Subscription
from reliable_cable.consumer import CableConsumer, get_hub
from reliable_cable.servers.base import FRAMES_EXTENSION, Transport

from .wire import BASE, EXTENDED, identifier

LIMIT = 4000
#: Of the transport's buffer: pauses above, and resumes below.
HIGH, LOW = 600, 200
#: The longest payload.
MOST = 1500

ONE, TWO = identifier("Room", streams=["a"]), identifier("Room", streams=["a", "b"])


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        for stream in self.params["streams"]:
            self.stream_from(stream)


@pytest.fixture(autouse=True)
def _room(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Handlers would wait for a thread now and then, if another test has left a database connection.
    monkeypatch.setattr(threads, "_connected", set())
    configured(settings)
    registry["Room"] = [Room]
    yield
    del registry["Room"]


def configured(settings: Any, **options: Any) -> None:
    settings.RELIABLE_CABLE = {
        "ENGINE": "memory",
        "PING_INTERVAL": 60,
        "MAX_PENDING_SIZE": LIMIT,
        "HISTORY_SIZE": 1000,
        "HANDLER_THREADS": 0,
        **options,
    }


class Wire(Transport):
    """A client's connection whose buffer takes `HIGH` characters; the client reads when it is told to.

    Args:
        frames: whether the server takes frames; else its `send` waits while the buffer is full.
        protocol: what the client speaks.
    """

    def __init__(self, *, frames: bool, protocol: str = EXTENDED) -> None:
        super().__init__(self.asgi_send)
        self.frames, self.protocol = frames, protocol
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self.log: list[Any] = []
        self._waiting: list[str] = []
        self._size = 0
        self._room = asyncio.Event()
        self._room.set()
        self._pause: Callable[[], None] = lambda: None
        self._resume: Callable[[], None] = lambda: None
        if frames:
            self.write = self._write

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        if self.frames:
            self._pause, self._resume = pause, resume

    def abort(self) -> None:
        self.ended.set()

    @property
    def aborted(self) -> bool:
        """Whether the server has dropped the connection."""
        return self.ended.is_set()

    async def asgi_send(self, message: dict[str, Any]) -> None:
        if not self.frames:
            await self._room.wait()
        if "text" in message:
            self._take(message["text"])

    def _write(self, data: bytes) -> None:
        while data:
            size, head = data[1], 2
            if size == 126:
                size, head = int.from_bytes(data[2:4], "big"), 4
            self._take(data[head : head + size].decode())
            data = data[head + size :]

    def _take(self, text: str) -> None:
        self._waiting.append(text)
        self._size += len(text)
        if self._size > HIGH and self._room.is_set():
            self._room.clear()
            self._pause()

    def read(self, size: int) -> None:
        """Let the client read so many characters, or one frame at least."""
        while self._waiting and size > 0:
            text = self._waiting.pop(0)
            size -= len(text)
            self._size -= len(text)
            self.log.append(json.loads(text))
        if self._size <= LOW and not self._room.is_set():
            self._room.set()
            self._resume()

    @property
    def session(self) -> Connection:
        (connection,) = get_hub().connections.all()
        assert isinstance(connection, Connection)
        return connection

    @property
    def subscriptions(self) -> Iterable[Subscription]:
        """The subscriptions of its connection."""
        return cast(Mapping[str, Subscription], self.session.subscriptions).values()

    def check_bounds(self) -> None:
        """What waits for the client, in queue and in hand, is bounded."""
        if not get_hub().connections:
            return  # before it was accepted
        box = self.session.outbox
        subscriptions = self.subscriptions
        held = sum(len(text) for one in subscriptions for each in one.streams.values() for text in each._held or ())
        assert box.held == held
        assert box._size == sum(map(len, box._queue))
        assert box._size + held <= LIMIT

    async def settle(self) -> None:
        """Let everything happen that does not wait for the client."""
        async with asyncio.timeout(10):
            for _ in range(40):
                # A stream rests for some milliseconds if sending took long.
                while any(found._sending or found.repair for found in get_hub()._streams.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                self.check_bounds()

    async def read_all(self) -> None:
        """Let the client read until there is nothing more."""
        for _ in range(2000):
            count = len(self.log)
            self.read(10**9)
            await self.settle()
            if len(self.log) == count and not self._waiting:
                return
        raise AssertionError("there is no end")

    async def __aenter__(self) -> Wire:
        offered = {FRAMES_EXTENSION: self}
        scope = {"type": "websocket", "subprotocols": [self.protocol], "headers": [], "extensions": offered}
        self._task = asyncio.ensure_future(CableConsumer.as_asgi()(scope, self.incoming.get, self.asgi_send))
        self.incoming.put_nowait({"type": "websocket.connect"})
        await self.settle()
        return self

    async def __aexit__(self, *exc: object) -> None:
        hub = get_hub()
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(self._task, 10)
        await hub.aclose()

    async def subscribe(self, name: str) -> None:
        text = json.dumps({"command": "subscribe", "identifier": name})
        self.incoming.put_nowait({"type": "websocket.receive", "text": text})
        await self.read_all()
        assert self.log[-1] == {"type": "confirm_subscription", "identifier": name}

    def numbers(self, name: str, stream: str) -> list[Any]:
        """What came from a stream: the messages' own numbers, and `"lost"` where the client was told of a loss."""
        found: list[Any] = []
        for frame in self.log:
            if frame.get("identifier") != name:
                continue
            if frame.get("type") == "reject_history":
                found.append("lost")
            elif "message" in frame and frame["message"]["stream"] == stream:
                found.append(frame["message"]["n"])
        return found


async def publish(stream: str, number: int, size: int = 10, *, transient: bool = False) -> None:
    await abroadcast(stream, {"stream": stream, "n": number, "pad": "x" * size}, transient=transient)


async def publish_many(stream: str, count: int, size: int, *, transient: bool = False) -> None:
    """Publish numbers from 0, all at once."""
    for number in range(count):
        await publish(stream, number, size, transient=transient)


frames_or_not = pytest.mark.parametrize("frames", [True, False], ids=["frames", "send"])


@frames_or_not
@pytest.mark.parametrize("protocol", [EXTENDED, BASE])
async def test_a_burst_of_many_times_the_limit_is_read_at_the_clients_pace(frames: bool, protocol: str) -> None:
    async with Wire(frames=frames, protocol=protocol) as client:
        await client.subscribe(ONE)
        await publish_many("a", 100, 500)
        await client.settle()
        assert not client.aborted
        await client.read_all()
        await publish("a", 100)
        await client.read_all()
        assert client.numbers(ONE, "a") == list(range(101))
        assert not client.aborted


@frames_or_not
async def test_subscriptions_that_catch_up_together_do_so_by_turns(frames: bool) -> None:
    async with Wire(frames=frames) as client:
        names = [identifier("Room", streams=["a"], n=number) for number in range(10)]
        for name in names:
            await client.subscribe(name)
        await publish_many("a", 20, 500)
        await client.settle()
        await client.read_all()
        assert not client.aborted
        for name in names:
            assert client.numbers(name, "a") == list(range(20))


@frames_or_not
async def test_one_that_stays_stuck_is_dropped_in_time(
    frames: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "BLIND_STALL_TIME", 0.02)
    async with Wire(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 100, 500)
        await asyncio.wait_for(client.ended.wait(), 5)
    assert "too_slow" in caplog.text


@frames_or_not
async def test_one_that_reads_slowly_is_not(frames: bool) -> None:
    async with Wire(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 30, 500)
        await client.settle()
        judged = 0
        while 29 not in client.numbers(ONE, "a"):
            client.read(LIMIT)
            await client.settle()
            assert not client.aborted
            box = client.session.outbox
            if box._watch is not None:  # its time is over
                box._watch.cancel()
                box._check_socket()
                judged += 1
        assert judged > 3
        assert client.numbers(ONE, "a") == list(range(30))


@frames_or_not
async def test_what_was_trimmed_before_the_client_read_it_is_told(
    frames: bool, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reliable_cable.stores.streams.memory.YOUNG_TIME", 0.0)
    configured(settings, HISTORY_SIZE=5)
    async with Wire(frames=frames) as client:
        await client.subscribe(ONE)
        for number in range(100):
            await publish("a", number, 500)
            await client.settle()
        await client.read_all()
        await publish("a", 100)
        await client.read_all()
        got = client.numbers(ONE, "a")
        assert got[-1] == 100
        assert got.count("lost") == 1
        numbers = [number for number in got if number != "lost"]
        assert numbers[: got.index("lost")] == list(range(got.index("lost")))
        assert not client.aborted


@frames_or_not
async def test_what_has_no_position_has_the_old_rule(frames: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with Wire(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 100, 500, transient=True)
        await client.settle()
        assert client.aborted
    assert "too_slow" in caplog.text


@frames_or_not
async def test_what_has_no_position_follows_what_it_came_after(frames: bool) -> None:
    async with Wire(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 20, 500)
        await publish("a", -1, transient=True)
        await client.settle()
        await client.read_all()
        await publish("a", 20)
        await client.read_all()
        assert client.numbers(ONE, "a") == [*range(20), -1, 20]


@frames_or_not
async def test_a_client_that_is_behind_may_be_pinged(frames: bool) -> None:
    async with Wire(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 20, 500)
        await client.settle()
        assert client.session.ping('{"type":"ping","message":1}')
        await client.read_all()
        assert client.numbers(ONE, "a") == list(range(20))
        assert not client.aborted


@frames_or_not
async def test_who_unsubscribes_while_behind_keeps_nothing(frames: bool) -> None:
    async with Wire(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 20, 500)
        await publish("a", -1, transient=True)
        await client.settle()
        assert client.session.outbox.held > 0
        text = json.dumps({"command": "unsubscribe", "identifier": ONE})
        client.incoming.put_nowait({"type": "websocket.receive", "text": text})
        await client.settle()
        assert client.session.outbox.held == 0


sizes = st.integers(1, MOST)
step = st.one_of(
    st.tuples(st.just("burst"), st.sampled_from("ab"), st.lists(sizes, min_size=1, max_size=12)),
    st.tuples(st.just("read"), st.integers(1, 5000)),
    st.just(("turn",)),
    st.just(("settle",)),
)


@configure(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(step, max_size=25),
    frames=st.booleans(),
    history=st.sampled_from([6, 1000]),
    protocol=st.sampled_from([EXTENDED, BASE]),
)
def test_whatever_comes_and_however_it_is_read_each_message_comes_once_in_order_or_its_loss_is_told(
    settings: Any, steps: list[Any], frames: bool, history: int, protocol: str
) -> None:
    async def scenario() -> None:
        counts = {"a": 0, "b": 0}
        async with Wire(frames=frames, protocol=protocol) as client:
            await client.subscribe(ONE)
            await client.subscribe(TWO)
            for what, *rest in steps:
                if what == "burst":
                    stream, lengths = rest
                    for length in lengths:
                        await publish(stream, counts[stream], length)
                        counts[stream] += 1
                elif what == "read":
                    client.read(rest[0])
                elif what == "turn":
                    await asyncio.sleep(0)
                else:  # as when an action starts another stream
                    for subscription in client.subscriptions:
                        subscription.catch_up()
                client.check_bounds()
            await client.read_all()
            assert not client.aborted
            for name, stream in ((ONE, "a"), (TWO, "a"), (TWO, "b")):
                expected = 0
                for number in client.numbers(name, stream):
                    if number == "lost":
                        assert history < 1000, "nothing was lost"
                        expected = -1
                    else:
                        assert number == expected or (expected == -1 and number >= 0)
                        expected = number + 1
                assert expected in (-1, counts[stream])

    # The base protocol has no word for a loss: such a client would be sent away.
    configured(settings, HISTORY_SIZE=1000 if protocol == BASE else history)
    asyncio.run(scenario())
