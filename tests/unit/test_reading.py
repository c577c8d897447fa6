"""The frames of a client are read at a limited rate, and not while its queue of commands is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from reliable_cable import Channel, action
from reliable_cable.channel import registry
from reliable_cable.connection.command_queue import MAX_QUEUED_COMMANDS
from reliable_cable.connection.connection import Connection
from reliable_cable.connection.reading import BURST_TIME, FLOOD_TIME, FRAMES_PER_ITERATION, Reading
from reliable_cable.protocol import messages

from .wire import Client, connection_of, identifier, run_event_loop, until

RATE = 100
MAX_SUBSCRIPTIONS = 40
#: How many frames may be sent at once.
BURST = int(RATE * BURST_TIME) + MAX_SUBSCRIPTIONS


class Room(Channel, abstract=True):
    gate: asyncio.Event

    @action
    async def wait(self, data: Any) -> None:
        await self.gate.wait()
        self.transmit([data["number"]])


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {
        "ENGINE": "memory",
        "PING_INTERVAL": 60,
        "MAX_FRAME_RATE": RATE,
        "MAX_SUBSCRIPTIONS": MAX_SUBSCRIPTIONS,
        "MAX_PENDING_SIZE": 100_000,
    }
    registry["Room"] = [Room]
    Room.gate = asyncio.Event()
    yield
    del registry["Room"]


def unread(client: Client) -> int:
    """Return how many frames of a client the server has received, but the connection has not read."""
    return int(client.communicator.input_queue.qsize())


class TestRate:
    """The tests call `_delay` after any number of frames, with a time that they choose."""

    @staticmethod
    def read(reading: Reading, frames: int, now: float) -> float:
        """Read frames at once. Return how long the next frame has to wait."""
        for _ in range(frames):
            reading.count({"text": '{"command":"pong"}'})
        return reading._delay(now)

    async def test_a_burst_is_read_at_once_and_more_at_the_rate(self) -> None:
        async with Client() as client:
            reading = Reading(connection_of(client))
            assert self.read(reading, BURST, 1000) == 0
            assert self.read(reading, 10, 1000) == pytest.approx(10 / RATE)
            assert self.read(reading, 10, 1000 + 20 / RATE) == 0

    async def test_a_client_that_sends_less_is_never_slowed_down(self) -> None:
        async with Client() as client:
            reading = Reading(connection_of(client))
            assert all(self.read(reading, 8, 1000 + turn * 8 / RATE) == 0 for turn in range(1000))

    async def test_a_client_that_goes_on_sending_more_is_disconnected(self) -> None:
        async with Client() as client:
            reading, now, read = Reading(connection_of(client)), 1000.0, BURST
            while now < 1000 + FLOOD_TIME:
                assert not connection_of(client).ending
                now += self.read(reading, 8, now)
                read += 8
            self.read(reading, 80, now + 0.1)
            assert await client.receive() == {"type": "disconnect", "reason": "rate_limited", "reconnect": True}

    async def test_the_rate_can_be_unlimited(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "MAX_FRAME_RATE": None}
        async with Client() as client:
            assert self.read(Reading(connection_of(client)), 10**5, 1000) == 0


class TestTurns:
    async def test_after_some_frames_of_a_client_other_connections_have_a_turn(self) -> None:
        async with Client() as client:
            for _ in range(10 * FRAMES_PER_ITERATION):
                client.communicator.input_queue.put_nowait({"type": "websocket.receive", "text": '{"command":"pong"}'})
            counts = []
            while unread(client):
                counts.append(unread(client))
                await asyncio.sleep(0)
            assert len(counts) >= 10
            assert max(one - other for one, other in pairwise(counts)) <= FRAMES_PER_ITERATION


class TestFullQueue:
    async def send(self, client: Client, count: int, size: int = 0) -> None:
        await client.subscribe(ROOM)
        for number in range(count):
            await client.perform(ROOM, "wait", number=number, pad="x" * size)

    async def test_no_more_frames_are_read_while_many_commands_are_queued(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "MAX_FRAME_RATE": None}
        count = MAX_QUEUED_COMMANDS + 100
        async with Client() as client:
            await self.send(client, count)
            await until(lambda: connection_of(client).commands.full)
            await run_event_loop()
            # One command is being handled, `MAX_QUEUED_COMMANDS` are queued, and the others are not read.
            assert unread(client) == count - MAX_QUEUED_COMMANDS - 1
            Room.gate.set()
            assert [frame["message"] for frame in await client.receive_many(count)] == [
                [number] for number in range(count)
            ]

    async def test_no_more_frames_are_read_while_large_commands_are_queued(self) -> None:
        async with Client() as client:
            await self.send(client, 30, size=9_000)
            await until(lambda: connection_of(client).commands.full)
            await run_event_loop()
            assert unread(client) >= 20
            assert connection_of(client).account.used < 65_000
            Room.gate.set()
            assert [frame["message"] for frame in await client.receive_many(30)] == [[number] for number in range(30)]
            assert connection_of(client).account.used == 0

    async def test_a_client_that_is_not_read_need_not_answer_pings(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "PONG_TIMEOUT": 5}
        async with Client() as client:
            await client.send_text('{"command":"pong"}')
            await self.send(client, 30, size=9_000)
            connection = connection_of(client)
            await until(lambda: connection.reading_paused)
            self.grow_older(connection)
            assert connection.ping(messages.ping(1))
            Room.gate.set()
            await client.receive_many(1 + 30)
            await until(lambda: not connection.reading_paused)
            assert connection.ping(messages.ping(1))
            self.grow_older(connection)
            assert not connection.ping(messages.ping(1))

    @staticmethod
    def grow_older(connection: Connection) -> None:
        """Set the time of the last pong to ten seconds ago."""
        connection._last_pong = time.monotonic() - 10

    async def test_the_end_of_the_connection_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("reliable_cable.connection.reading.CHECK_INTERVAL", 0.01)
        async with Client() as client:
            await self.send(client, 30, size=9_000)
            connection = connection_of(client)
            await until(lambda: connection.reading_paused)
            monkeypatch.setattr(type(connection.transport), "lost", True)
            await until(lambda: not connection.reading_paused)
            Room.gate.set()
        assert connection.account.used == 0
