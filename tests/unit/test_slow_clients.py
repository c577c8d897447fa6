"""A connection whose socket is full: when it is given up, how much it keeps, and how often it asks the store."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from django.utils import translation

from reliable_cable import Channel, action
from reliable_cable.broadcasting import abroadcast
from reliable_cable.channel import registry
from reliable_cable.concurrency import threads
from reliable_cable.connection import outbox
from reliable_cable.consumer import get_hub
from reliable_cable.hub.fanout import POLICY
from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.recovery import Entry
from reliable_cable.servers.base import unacknowledged_bytes

from .test_bursts import LIMIT, ONE, Room, Wire, configured, frames_or_not, publish, publish_many
from .wire import Client, identifier


class More(Channel, abstract=True):
    def subscribed(self) -> None:
        self.stream_from("a")

    @action
    def more(self) -> None:
        self.stream_from("c")
        self.transmit("more")

    @action
    def german(self) -> None:
        translation.activate("de")
        self.language()

    @action
    def language(self) -> None:
        self.transmit({"language": translation.get_language()})


@pytest.fixture(autouse=True)
def _rooms(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Handlers would wait for a thread now and then, if another test has left a database connection.
    monkeypatch.setattr(threads, "_connected", set())
    configured(settings)
    registry.update({"Room": [Room], "More": [More]})
    yield
    del registry["Room"], registry["More"]


# -- when it is given up -----------------------------------------------------------------------------------------------


@frames_or_not
async def test_who_empties_the_kernels_buffer_is_not_stuck(frames: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    unsent = 10

    def judge(box: Any) -> None:
        assert box._watch is not None
        box._watch.cancel()
        box._check_socket()

    async with Wire(frames=frames) as client:
        client.session.outbox._unsent = lambda: unsent
        await client.subscribe(ONE)
        await publish_many("a", 100, 500)
        await client.settle()
        for then in range(9, 4, -1):
            unsent = then
            judge(client.session.outbox)
            assert not client.aborted
        unsent += 6  # a ping of the server's own
        judge(client.session.outbox)
        assert client.aborted


def test_where_nobody_knows_the_kernels_buffer_there_is_more_time() -> None:
    assert outbox.BLIND_STALL_TIME > outbox.STALL_TIME


def test_the_kernel_says_how_much_was_not_taken() -> None:
    near, far = socket.socketpair(socket.AF_UNIX)
    with near, far, socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as one, server.accept()[0] as other:
            assert unacknowledged_bytes(one.fileno()) == 0
            other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.setblocking(False)
            one.send(b"x" * 4_000_000)
            before = unacknowledged_bytes(one.fileno())
            assert before
            taken = 0
            while unacknowledged_bytes(one.fileno()) == before:
                taken += len(other.recv(65536))
            assert taken
    assert unacknowledged_bytes(-1 & 0x7FFFFFFF) is None, "it is closed"


# -- what it keeps -----------------------------------------------------------------------------------------------------


async def test_a_reader_that_was_removed_holds_nothing_back() -> None:
    async with Wire(frames=True) as client:
        await client.subscribe(ONE)
        (subscription,) = client.subscriptions
        (subscribed,) = subscription.streams.values()
        get_hub().unsubscribe(subscribed.stream, subscribed)
        subscribed.hold(Frame("x" * 10))
        assert client.session.outbox.held == 0


async def test_history_and_what_is_held_back_leave_room_for_what_can_only_be_sent() -> None:
    async with Wire(frames=False) as client:
        await client.subscribe(ONE)
        await publish_many("a", 60, 400)
        for number in range(1, 30):
            await publish("a", -number, 300, transient=True)
        await client.settle()
        assert 0 < client.session.outbox.held <= LIMIT // 4
        await client.read_all()
        assert not client.aborted
        assert [number for number in client.numbers(ONE, "a") if number >= 0] == list(range(60))


async def test_a_long_identifier_makes_no_longer_writes(settings: Any) -> None:
    configured(settings, MAX_PENDING_SIZE=1024 * 1024)
    async with Wire(frames=True) as client:
        await client.subscribe(identifier("Room", streams=["a"], pad="p" * 15_000))
        sizes: list[int] = []
        client.session.outbox.ready = lambda data: sizes.append(len(data))
        for number in range(POLICY.batch_messages + 1):
            get_hub()._streams["a"].take(Entry(number + 1, "1"), "e")
        await client.settle()
        assert len(sizes) == POLICY.batch_messages + 1
        assert max(sizes) < POLICY.block_size


# -- how often it asks -------------------------------------------------------------------------------------------------


async def test_reads_grow_with_what_is_missing_not_with_how_many_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [identifier("Room", streams=[f"s{number}"]) for number in range(40)]
    async with Wire(frames=True) as client:
        for name in names:
            await client.subscribe(name)
        hub = get_hub()
        monkeypatch.setattr(hub.history, "_cache", lambda *page: None)  # as if they came later than it keeps pages
        read, reads = hub.engine.streams.aread, 0

        async def counted(*args: Any, **options: Any) -> Any:
            nonlocal reads
            reads += 1
            return await read(*args, **options)

        monkeypatch.setattr(hub.engine.streams, "aread", counted)
        for number in range(40):
            for count in range(4):
                await publish(f"s{number}", count, 500)
        await client.read_all()
        assert [client.numbers(name, f"s{at}") for at, name in enumerate(names)] == [[0, 1, 2, 3]] * 40
        assert reads <= 3 * len(names)


# -- what comes after --------------------------------------------------------------------------------------------------


async def test_what_a_handler_sets_is_for_none_after_it(settings: Any) -> None:
    configured(settings, HANDLER_THREADS=2)
    name = identifier("More")
    async with Client() as client:
        await client.subscribe(name)
        for what, language in (("german", "de"), ("language", "en-us")):
            await client.perform(name, what)
            assert (await client.receive())["message"] == {"language": language}


@pytest.mark.parametrize("transient", [True, False])
async def test_a_stream_that_was_started_after_a_restore_is_heard(transient: bool) -> None:
    name = identifier("More")
    async with Client() as client:
        await client.subscribe(name)
    async with Client(client.sid) as restored:
        assert restored.welcome["restored"]
        await restored.send("history", name, history={"since": 1, "streams": {}})
        assert (await restored.receive())["type"] == "confirm_history"
        await restored.perform(name, "more")
        assert (await restored.receive())["message"] == "more"
        await abroadcast("c", {"n": 1}, transient=transient)
        assert (await restored.receive())["message"] == {"n": 1}
