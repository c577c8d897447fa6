"""Slow clients: when their connections are closed, how much memory they use, and how often the store is read."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from django.utils import translation

from reliable_cable import Channel, Snapshot, action
from reliable_cable.broadcasting import abroadcast, aposition
from reliable_cable.channel import registry
from reliable_cable.connection import outbox
from reliable_cable.consumer import get_hub
from reliable_cable.disconnecting import arevoke
from reliable_cable.hub.fanout import POLICY
from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.recovery import Entry
from reliable_cable.servers.base import unacknowledged_bytes
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.streams.base import Message

from .test_bursts import LIMIT, ONE, Room, SlowClient, configured, frames_or_not, publish, publish_many
from .wire import Client, identifier, until


class Actions(Channel, abstract=True):
    def subscribed(self) -> None:
        self.stream_from("a")

    @action
    def start_stream(self) -> None:
        self.stream_from("c")
        self.transmit("started")

    @action
    def switch_to_german(self) -> None:
        translation.activate("de")
        self.language()

    @action
    def language(self) -> None:
        self.transmit({"language": translation.get_language()})


class Talkative(Channel, abstract=True):
    """Transmits more than `MAX_PENDING_SIZE` at once."""

    async def subscribed(self) -> None:
        self.stream_from("a")
        self._say_much()

    @action
    async def talk(self) -> None:
        self._say_much()

    def _say_much(self) -> None:
        for number in range(50):
            self.transmit({"n": number, "stream": "talk", "pad": "x" * 200})


class Answer(Channel, abstract=True):
    """Gives a snapshot that is larger than `MAX_PENDING_SIZE`."""

    snapshots = 0

    def subscribed(self) -> None:
        self.stream_from("a")

    async def snapshot(self, stream: str) -> Snapshot:
        Answer.snapshots += 1
        return Snapshot(await aposition(stream), {"stream": stream, "n": 0, "text": "x" * 3 * LIMIT})


TALKATIVE = identifier("Talkative")
TALK = json.dumps({"command": "message", "identifier": TALKATIVE, "data": json.dumps({"action": "talk"})})


@pytest.fixture(autouse=True)
def _rooms(settings: Any) -> Iterator[None]:
    configured(settings)
    registry.update({"Room": [Room], "Actions": [Actions], "Talkative": [Talkative]})
    registry["Answer"] = [Answer]
    Answer.snapshots = 0
    yield
    del registry["Room"], registry["Actions"], registry["Talkative"], registry["Answer"]


# -- when a connection is closed ---------------------------------------------------------------------------------------


@frames_or_not
async def test_a_client_that_takes_data_from_the_kernels_buffer_stays_connected(
    frames: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsent = 10

    def end_watch(outbox: Any) -> None:
        """End the client's time to read something."""
        assert outbox._watch is not None
        outbox._watch.cancel()
        outbox._check_socket()

    async with SlowClient(frames=frames) as client:
        client.connection.outbox.unsent = lambda: unsent
        await client.subscribe(ONE)
        await publish_many("a", 100, 500)
        await client.run_until_idle()
        for remaining in range(9, 4, -1):
            unsent = remaining
            end_watch(client.connection.outbox)
            assert not client.aborted
        unsent += 6  # as if daphne or uvicorn had sent a ping of its own
        end_watch(client.connection.outbox)
        assert client.aborted


async def test_a_client_that_reads_slowly_and_is_not_read_need_not_answer_pings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("reliable_cable.connection.reading.CHECK_INTERVAL", 0.001)
    pauses = 0

    def pause_reading() -> None:
        nonlocal pauses
        pauses += 1

    async with SlowClient(frames=True) as client:
        await client.subscribe(TALKATIVE)
        client.pause_reading = pause_reading  # type: ignore[method-assign]
        client.incoming.put_nowait({"type": "websocket.receive", "text": TALK})
        await until(lambda: client.connection.outbox.blocked)
        for _ in range(200):
            client.incoming.put_nowait({"type": "websocket.receive", "text": '{"command":"ping"}'})
        # Each pause gives the client more time to answer the pings of the server.
        await until(lambda: pauses > 100)
        assert client.connection.reading_paused
        await client.read_all()
        assert not client.connection.reading_paused
        assert client.log.count({"type": "pong"}) == 200


@frames_or_not
async def test_a_client_gets_snapshots_that_are_larger_than_what_may_be_pending(frames: bool) -> None:
    answers = [identifier("Answer", number=number) for number in range(10)]
    async with SlowClient(frames=frames) as client:
        await publish("a", 1)
        for each in answers:
            subscribe = {"command": "subscribe", "identifier": each, "history": {"since": 1}}
            client.incoming.put_nowait({"type": "websocket.receive", "text": json.dumps(subscribe)})
        await until(lambda: client.connection.outbox.blocked)
        for number in range(2, 6):
            await publish("a", number)
            await client.run_until_idle()
        assert Answer.snapshots == 1, "while the client does not read, the server makes no more snapshots"
        async with asyncio.timeout(60):
            while not all(client.numbers(each, "a") for each in answers):
                await client.read_all()
            assert Answer.snapshots == len(answers)
            await publish("a", 6)
            while any(client.numbers(each, "a")[-1] != 6 for each in answers):
                await client.read_all()
        assert not client.aborted
        for each in answers:
            numbers = client.numbers(each, "a")
            assert numbers[0] == 0
            assert numbers[1:] == [*range(7 - len(numbers) + 1, 7)]
            assert len(numbers) > 1


@frames_or_not
async def test_whispers_are_dropped_for_a_client_that_does_not_read(frames: bool) -> None:
    async with SlowClient(frames=frames) as client:
        await client.subscribe(ONE)
        for number in range(100):
            await get_engine().streams.awhisper(
                "a", Message(json.dumps({"stream": "a", "n": number, "pad": "x" * 200}))
            )
        await client.run_until_idle()
        assert client.connection.account.used <= client.connection.account.half
        await client.read_all()
        await publish("a", 100, transient=True)
        await client.read_all()
        received = client.numbers(ONE, "a")
        assert 0 < len(received) < 50
        assert received[-1] == 100


def test_a_connection_whose_kernel_buffer_is_unknown_is_closed_later() -> None:
    assert outbox.BLIND_STALL_TIME > outbox.STALL_TIME


def test_the_kernel_tells_how_many_bytes_the_other_side_has_not_taken() -> None:
    near, far = socket.socketpair(socket.AF_UNIX)
    with near, far, socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as sender, server.accept()[0] as receiver:
            assert unacknowledged_bytes(sender.fileno()) == 0
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sender.setblocking(False)
            sender.send(b"x" * 4_000_000)
            before = unacknowledged_bytes(sender.fileno())
            assert before
            taken = 0
            while unacknowledged_bytes(sender.fileno()) == before:
                taken += len(receiver.recv(65536))
            assert taken
    assert unacknowledged_bytes(-1 & 0x7FFFFFFF) is None, "no socket has this number"


# -- what a connection keeps -------------------------------------------------------------------------------------------


async def test_a_closed_subscriber_holds_no_messages() -> None:
    async with SlowClient(frames=True) as client:
        await client.subscribe(ONE)
        (subscription,) = client.subscriptions
        (subscribed,) = subscription.streams.values()
        get_hub().unsubscribe(subscribed.stream, subscribed)
        subscribed.hold(Frame("x" * 10))
        assert client.connection.outbox.held == 0


async def test_history_and_held_messages_leave_room_for_frames_that_cannot_be_read_later() -> None:
    async with SlowClient(frames=False) as client:
        await client.subscribe(ONE)
        await publish_many("a", 60, 400)
        for number in range(1, 30):
            await publish("a", -number, 300, transient=True)
        await client.run_until_idle()
        assert 0 < client.connection.outbox.held <= LIMIT // 4
        await client.read_all()
        assert not client.aborted
        assert [number for number in client.numbers(ONE, "a") if number >= 0] == list(range(60))


class TestTransmissions:
    @frames_or_not
    async def test_a_client_that_reads_slowly_gets_all_of_them(self, frames: bool) -> None:
        async with SlowClient(frames=frames) as client:
            await client.subscribe(TALKATIVE)
            assert client.numbers(TALKATIVE, "talk") == list(range(50))
            text = json.dumps({"command": "message", "identifier": TALKATIVE, "data": '{"action":"talk"}'})
            client.incoming.put_nowait({"type": "websocket.receive", "text": text})
            await client.read_all()
            assert client.numbers(TALKATIVE, "talk") == [*range(50)] * 2

    async def test_those_of_a_restore_are_sent_in_the_same_way(self) -> None:
        async with SlowClient(frames=True) as client:
            await client.subscribe(TALKATIVE)
            sid = client.connection.sid
        async with SlowClient(frames=True, sid=sid) as later:
            await later.read_all()
            assert later.numbers(TALKATIVE, "talk") == list(range(50))

    async def test_a_subscription_that_is_revoked_meanwhile_is_not_confirmed(self) -> None:
        async with SlowClient(frames=True) as client:
            text = json.dumps({"command": "subscribe", "identifier": TALKATIVE})
            client.incoming.put_nowait({"type": "websocket.receive", "text": text})
            await client.run_until_idle()
            assert client.full
            await arevoke(channel=Talkative)
            await client.read_all()
            assert "confirm_subscription" not in [frame.get("type") for frame in client.log]
            assert client.ended


async def test_the_size_of_a_write_is_bounded_even_with_a_long_identifier(settings: Any) -> None:
    configured(settings, MAX_PENDING_SIZE=1024 * 1024, MAX_IDENTIFIER_SIZE=16_000)
    async with SlowClient(frames=True) as client:
        await client.subscribe(identifier("Room", streams=["a"], pad="p" * 15_000))
        sizes: list[int] = []
        client.connection.outbox.ready = lambda data: sizes.append(len(data))
        for number in range(POLICY.batch_messages + 1):
            get_hub()._streams["a"].take(Entry(number + 1, "1"), "e")
        await client.run_until_idle()
        assert len(sizes) == POLICY.batch_messages + 1
        assert max(sizes) < POLICY.block_size


# -- how often the store is read ---------------------------------------------------------------------------------------


async def test_the_number_of_reads_grows_with_the_missing_messages_and_not_with_the_waiting_subscriptions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [identifier("Room", streams=[f"s{number}"]) for number in range(40)]
    async with SlowClient(frames=True) as client:
        for name in names:
            await client.subscribe(name)
        hub = get_hub()
        monkeypatch.setattr(hub.history, "_cache", lambda *page: None)  # as if each page had expired
        read, reads = hub.engine.streams.aread, 0

        async def counting_read(*args: Any, **options: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*args, **options)

        monkeypatch.setattr(hub.engine.streams, "aread", counting_read)
        for number in range(40):
            for count in range(4):
                await publish(f"s{number}", count, 500)
        await client.read_all()
        assert [client.numbers(name, f"s{at}") for at, name in enumerate(names)] == [[0, 1, 2, 3]] * 40
        assert reads <= 3 * len(names)


# -- handlers and restored subscriptions -------------------------------------------------------------------------------


async def test_the_language_that_a_handler_activates_does_not_affect_the_next_handler(settings: Any) -> None:
    configured(settings, HANDLER_THREADS=2)
    name = identifier("Actions")
    async with Client() as client:
        await client.subscribe(name)
        for action_name, language in (("switch_to_german", "de"), ("language", "en-us")):
            await client.perform(name, action_name)
            assert (await client.receive())["message"] == {"language": language}


@pytest.mark.parametrize("transient", [True, False])
async def test_messages_of_a_stream_that_was_started_after_a_restore_are_received(transient: bool) -> None:
    name = identifier("Actions")
    async with Client() as client:
        await client.subscribe(name)
    async with Client(client.sid) as restored:
        assert restored.welcome["restored"]
        await restored.send("history", name, history={"since": 1, "streams": {}})
        assert (await restored.receive())["type"] == "confirm_history"
        await restored.perform(name, "start_stream")
        assert (await restored.receive())["message"] == "started"
        await abroadcast("c", {"n": 1}, transient=transient)
        assert (await restored.receive())["message"] == {"n": 1}
