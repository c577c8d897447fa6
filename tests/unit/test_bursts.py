"""After a burst above `MAX_PENDING_SIZE`, a healthy client catches up, and a stuck client is disconnected."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as configure
from hypothesis import strategies as st

from reliable_cable import Channel
from reliable_cable.broadcasting import abroadcast
from reliable_cable.connection import outbox
from reliable_cable.connection.connection import Connection
from reliable_cable.connection.subscription import Subscription
from reliable_cable.consumer import CableConsumer, get_hub
from reliable_cable.hub import fanout
from reliable_cable.protocol.constants import SESSION_HEADER
from reliable_cable.servers.base import FRAMES_EXTENSION
from tests.support.examples import examples
from tests.support.memory_socket import MemorySocket

from .wire import BASE, EXTENDED, identifier, registered

LIMIT = 4000
#: The sizes of the transport's buffer above which it pauses writing, and below which it resumes.
HIGH, LOW = 600, 200
#: The length of the longest padding of a message.
MAX_PADDING = 1500

ONE, TWO = identifier("Room", streams=["a"]), identifier("Room", streams=["a", "b"])


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        for stream in self.params["streams"]:
            self.stream_from(stream)


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    configured(settings)
    with registered(Room=Room):
        yield


def configured(settings: Any, **options: Any) -> None:
    """Configure the memory engine with small limits."""
    settings.RELIABLE_CABLE = {
        "ENGINE": "memory",
        "PING_INTERVAL": 60,
        "MAX_PENDING_SIZE": LIMIT,
        "HISTORY_SIZE": 1000,
        "HANDLER_THREADS": 0,
        **options,
    }


class SlowClient(MemorySocket):
    """A client's connection whose buffer takes `HIGH` characters. The client reads when a test calls `read_characters`.

    Args:
        frames: whether the server takes encoded frames. If not, its `send` waits while the buffer is full.
        protocol: the subprotocol of the client.
        sid: the id of the session to restore.
    """

    def __init__(self, *, frames: bool, protocol: str = EXTENDED, sid: str = "") -> None:
        super().__init__(frames=frames, high=HIGH, low=LOW)
        self.protocol = protocol
        self.sid = sid
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.dropped = asyncio.Event()
        self.log: list[Any] = []

    def abort(self) -> None:
        super().abort()
        self.dropped.set()

    def read_characters(self, size: float) -> None:
        """Let the client read at most this many characters, but at least one frame."""
        self.log += [frame for frame, _ in self.read(math.inf, size)]

    @property
    def connection(self) -> Connection:
        (connection,) = get_hub().connections.all()
        assert isinstance(connection, Connection)
        return connection

    @property
    def subscriptions(self) -> Iterable[Subscription]:
        return cast(Mapping[str, Subscription], self.connection.subscriptions).values()

    def check_bounds(self) -> None:
        """Check that the sizes of queued and held messages are counted correctly and are bounded."""
        if not get_hub().connections:
            return  # the connection has not been accepted yet
        outbox = self.connection.outbox
        subscriptions = self.subscriptions
        held = sum(
            len(text)
            for subscription in subscriptions
            for stream in subscription.streams.values()
            for text in stream._held or ()
        )
        assert outbox.held == held
        assert outbox._size == sum(map(len, outbox._queue))
        assert outbox._size + held <= LIMIT

    async def run_until_idle(self) -> None:
        """Run the event loop until everything waits for the client to read."""
        async with asyncio.timeout(10):
            for _ in range(40):
                # A stream pauses for some milliseconds if sending took long.
                while any(stream._sending or stream.repair for stream in get_hub()._streams.values()):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                self.check_bounds()

    async def read_all(self) -> None:
        """Let the client read until nothing more is sent."""
        for _ in range(2000):
            count = len(self.log)
            self.read_characters(math.inf)
            await self.run_until_idle()
            if len(self.log) == count and not self.readable:
                return
        raise AssertionError("frames are sent without end")

    async def __aenter__(self) -> SlowClient:
        offered = {FRAMES_EXTENSION: self}
        headers = [(SESSION_HEADER, self.sid.encode())] if self.sid else []
        scope = {"type": "websocket", "subprotocols": [self.protocol], "headers": headers, "extensions": offered}
        self._task = asyncio.ensure_future(CableConsumer.as_asgi()(scope, self.incoming.get, self.send))
        self.incoming.put_nowait({"type": "websocket.connect"})
        await self.run_until_idle()
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
        """Return the numbers of a stream's messages that were received, and "lost" for each notice of a loss."""
        numbers: list[Any] = []
        for frame in self.log:
            if frame.get("identifier") != name:
                continue
            if frame.get("type") == "reject_history":
                numbers.append("lost")
            elif "message" in frame and frame["message"]["stream"] == stream:
                numbers.append(frame["message"]["n"])
        return numbers


async def publish(stream: str, number: int, size: int = 10, *, transient: bool = False) -> None:
    await abroadcast(stream, {"stream": stream, "n": number, "pad": "x" * size}, transient=transient)


async def publish_many(stream: str, count: int, size: int, *, transient: bool = False) -> None:
    """Publish `count` messages, numbered from 0, one right after another."""
    for number in range(count):
        await publish(stream, number, size, transient=transient)


async def fall_behind(client: SlowClient, count: int) -> None:
    """Subscribe, and publish `count` large messages, which the client does not read yet."""
    await client.subscribe(ONE)
    await publish_many("a", count, 500)
    await client.run_until_idle()


frames_or_not = pytest.mark.parametrize("frames", [True, False], ids=["frames", "send"])


@frames_or_not
@pytest.mark.parametrize("protocol", [EXTENDED, BASE])
async def test_a_burst_far_above_the_limit_is_read_at_the_pace_of_the_client(frames: bool, protocol: str) -> None:
    async with SlowClient(frames=frames, protocol=protocol) as client:
        await fall_behind(client, 100)
        assert not client.aborted
        await client.read_all()
        await publish("a", 100)
        await client.read_all()
        assert client.numbers(ONE, "a") == list(range(101))
        assert not client.aborted


@frames_or_not
async def test_several_subscriptions_of_a_client_catch_up_without_exceeding_the_limit(frames: bool) -> None:
    async with SlowClient(frames=frames) as client:
        names = [identifier("Room", streams=["a"], n=number) for number in range(10)]
        for name in names:
            await client.subscribe(name)
        await publish_many("a", 20, 500)
        await client.run_until_idle()
        await client.read_all()
        assert not client.aborted
        for name in names:
            assert client.numbers(name, "a") == list(range(20))


@frames_or_not
async def test_a_client_that_reads_nothing_is_disconnected_in_time(
    frames: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "BLIND_STALL_TIME", 0.02)
    async with SlowClient(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 100, 500)
        await asyncio.wait_for(client.dropped.wait(), 5)
    assert "too_slow" in caplog.text


@frames_or_not
async def test_a_client_that_reads_slowly_stays_connected(frames: bool) -> None:
    async with SlowClient(frames=frames) as client:
        await fall_behind(client, 30)
        checks = 0
        while 29 not in client.numbers(ONE, "a"):
            client.read_characters(LIMIT)
            await client.run_until_idle()
            assert not client.aborted
            outbox = client.connection.outbox
            if outbox._watch is not None:  # as if the client's time to read something were over
                outbox._watch.cancel()
                outbox._check_socket()
                checks += 1
        assert checks > 3
        assert client.numbers(ONE, "a") == list(range(30))


@frames_or_not
async def test_messages_that_were_trimmed_before_the_client_could_read_them_are_reported_as_lost(
    frames: bool, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reliable_cable.stores.streams.memory.YOUNG_TIME", 0.0)
    configured(settings, HISTORY_SIZE=5)
    async with SlowClient(frames=frames) as client:
        await client.subscribe(ONE)
        for number in range(100):
            await publish("a", number, 500)
            await client.run_until_idle()
        await client.read_all()
        await publish("a", 100)
        await client.read_all()
        received = client.numbers(ONE, "a")
        assert received[-1] == 100
        assert received.count("lost") == 1
        numbers = [number for number in received if number != "lost"]
        assert numbers[: received.index("lost")] == list(range(received.index("lost")))
        assert not client.aborted


@frames_or_not
async def test_a_burst_of_transient_messages_above_the_limit_disconnects_the_client(
    frames: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with SlowClient(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 100, 500, transient=True)
        await client.run_until_idle()
        assert client.aborted
    assert "too_slow" in caplog.text


@frames_or_not
async def test_a_transient_message_follows_the_kept_messages_that_were_sent_before_it(frames: bool) -> None:
    async with SlowClient(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 20, 500)
        await publish("a", -1, transient=True)
        await client.run_until_idle()
        await client.read_all()
        await publish("a", 20)
        await client.read_all()
        assert client.numbers(ONE, "a") == [*range(20), -1, 20]


@frames_or_not
async def test_a_client_that_is_catching_up_can_be_pinged(frames: bool) -> None:
    async with SlowClient(frames=frames) as client:
        await fall_behind(client, 20)
        assert client.connection.ping('{"type":"ping","message":1}')
        await client.read_all()
        assert client.numbers(ONE, "a") == list(range(20))
        assert not client.aborted


@frames_or_not
async def test_an_unsubscribe_while_catching_up_releases_the_held_messages(frames: bool) -> None:
    async with SlowClient(frames=frames) as client:
        await client.subscribe(ONE)
        await publish_many("a", 20, 500)
        await publish("a", -1, transient=True)
        await client.run_until_idle()
        assert client.connection.outbox.held > 0
        text = json.dumps({"command": "unsubscribe", "identifier": ONE})
        client.incoming.put_nowait({"type": "websocket.receive", "text": text})
        await client.run_until_idle()
        assert client.connection.outbox.held == 0


paddings = st.integers(1, MAX_PADDING)
actions = st.one_of(
    st.tuples(st.just("burst"), st.sampled_from("ab"), st.lists(paddings, min_size=1, max_size=12)),
    st.tuples(st.just("read"), st.integers(1, 5000)),
    st.just(("iterate",)),
    st.just(("catch up",)),
)


@configure(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(actions, max_size=25),
    frames=st.booleans(),
    history=st.sampled_from([6, 1000]),
    protocol=st.sampled_from([EXTENDED, BASE]),
)
def test_however_fast_a_client_reads_it_gets_each_message_once_and_in_order_or_is_told_of_a_loss(
    settings: Any, steps: list[Any], frames: bool, history: int, protocol: str
) -> None:
    async def scenario() -> None:
        counts = {"a": 0, "b": 0}
        async with SlowClient(frames=frames, protocol=protocol) as client:
            await client.subscribe(ONE)
            await client.subscribe(TWO)
            for action, *arguments in steps:
                if action == "burst":
                    stream, lengths = arguments
                    for length in lengths:
                        await publish(stream, counts[stream], length)
                        counts[stream] += 1
                elif action == "read":
                    client.read_characters(arguments[0])
                elif action == "iterate":
                    await asyncio.sleep(0)
                else:  # as if an action started another stream
                    for subscription in client.subscriptions:
                        subscription.catch_up()
                client.check_bounds()
            await client.read_all()
            assert not client.aborted
            for name, stream in ((ONE, "a"), (TWO, "a"), (TWO, "b")):
                expected = 0
                for number in client.numbers(name, stream):
                    if number == "lost":
                        assert history < 1000, "a loss was reported although nothing was trimmed"
                        expected = -1
                    else:
                        assert number == expected or (expected == -1 and number >= 0)
                        expected = number + 1
                assert expected in (-1, counts[stream])

    # The base protocol cannot report a loss: the client would be disconnected.
    configured(settings, HISTORY_SIZE=1000 if protocol == BASE else history)
    asyncio.run(scenario())


@frames_or_not
async def test_messages_that_arrive_faster_than_they_are_sent_are_read_from_the_store(
    frames: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("reliable_cable.hub.stream.MAX_QUEUED", 500)
    monkeypatch.setattr(fanout, "POLICY", replace(fanout.POLICY, budget=1, shortest_pause=math.inf))
    async with SlowClient(frames=frames) as client:
        names = [identifier("Room", streams=["a"], n=number) for number in range(10)]
        for name in names:
            await client.subscribe(name)
        await publish_many("a", 50, 100)
        await client.run_until_idle()
        await client.read_all()
        for name in names:
            assert client.numbers(name, "a") == list(range(50))
    assert "The messages of the stream 'a' arrive faster than they can be sent." in caplog.text
