"""How long calls of the NATS adapter wait for servers that hang. The servers are fakes, and the time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import nats
import pytest

from reliable_cable import BroadcastError, BroadcastUncertain
from reliable_cable.stores.adapters import nats as adapter
from tests.support.virtual_loop import VirtualLoop

#: How long, in seconds, a server that hangs needs to do anything.
NEVER = 1_000_000.0


class Servers:
    """Fake servers of NATS.

    Args:
        loop: the event loop.
        delays: how long, in seconds, each server needs to accept a connection, by its URL.
        flush: how long, in seconds, they need to confirm messages.
    """

    def __init__(self, loop: VirtualLoop, delays: Mapping[str, float], flush: float = 0) -> None:
        self.loop = loop
        self.delays = delays
        self.flush = flush
        #: The URLs of all attempts to connect.
        self.attempts: list[str] = []
        #: All messages that were published.
        self.published: list[str] = []
        #: The duration and the error of each call that has ended, by its number.
        self.ended: dict[int, tuple[float, type[BaseException] | None]] = {}

    async def call(self, connection: adapter._Connection, number: int) -> None:
        started = self.loop.time()
        error: type[BaseException] | None = None
        try:
            await connection.publish("subject", [str(number)])
        except BroadcastError as caught:
            error = type(caught)
        self.ended[number] = (self.loop.time() - started, error)

    def connection(self, **options: Any) -> adapter._Connection:
        return self.loop.call(lambda: adapter._Connection(list(self.delays), options, "NATS"))

    def start(self, connection: adapter._Connection, *numbers: int) -> None:
        """Start calls, all at the same time."""
        self.tasks = [self.loop.create_task(self.call(connection, number)) for number in numbers]


class FakeClient:
    """A client of nats-py. Closing it takes for ever, as if the server did not read what was sent."""

    max_payload = 1000
    is_connected = False

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def connect(self, urls: Sequence[str], **options: object) -> None:
        (url,) = urls
        self._servers.attempts.append(url)
        await asyncio.sleep(self._servers.delays[url])
        self.is_connected = True

    async def publish(self, subject: str, text: bytes) -> None:
        self._servers.published.append(text.decode())

    async def flush(self, _timeout: float) -> None:
        await asyncio.sleep(self._servers.flush)

    async def close(self) -> None:
        await asyncio.sleep(NEVER)


def with_servers(servers: Servers) -> Any:
    return mock.patch.object(nats, "NATS", side_effect=lambda: FakeClient(servers))


def test_each_call_fails_after_5_seconds_at_most_and_shares_the_running_attempt(loop: VirtualLoop) -> None:
    servers = Servers(loop, {"a": NEVER, "b": NEVER, "c": NEVER})
    with with_servers(servers):
        connection = servers.connection()
        for number in range(5):
            servers.start(connection, number)
            loop.run_for(2)
        loop.run_for(10)
    # The first attempt ends after 5 seconds. The call of the sixth second begins the second attempt.
    durations = {number: round(duration, 3) for number, (duration, _) in servers.ended.items()}
    assert durations == {0: 5, 1: 3, 2: 1, 3: 5, 4: 3}
    assert {error for _, error in servers.ended.values()} == {BroadcastError}


def test_the_next_attempt_begins_with_the_server_that_has_not_been_tried(loop: VirtualLoop) -> None:
    servers = Servers(loop, {"a": NEVER, "b": NEVER, "c": 0})
    with with_servers(servers):
        connection = servers.connection()
        servers.start(connection, 1, 2, 3)
        loop.run_for(10)
        assert [error for _, error in servers.ended.values()] == [BroadcastError] * 3
        assert servers.attempts == ["a", "b"]
        servers.start(connection, 4)
        loop.run_for(0)
    assert servers.ended[4] == (0, None)
    assert servers.attempts == ["a", "b", "c"]
    assert servers.published == ["4"]


def test_a_long_connect_timeout_is_the_limit_of_the_call(loop: VirtualLoop) -> None:
    servers = Servers(loop, {"a": 19})
    with with_servers(servers):
        connection = servers.connection(connect_timeout=10)
        servers.start(connection, 1)
        loop.run_for(30)
    assert servers.ended == {1: (19, None)}


def test_calls_that_wait_for_the_connection_are_sent_in_their_order(loop: VirtualLoop) -> None:
    servers = Servers(loop, {"a": 1})
    with with_servers(servers):
        connection = servers.connection()
        servers.start(connection, *range(5))
        loop.run_for(1)
        servers.start(connection, *range(5, 10))
        loop.run_for(1)
    assert servers.published == [str(number) for number in range(10)]
    assert servers.attempts == ["a"]


def test_calls_without_a_confirmation_are_uncertain_after_5_seconds(loop: VirtualLoop) -> None:
    servers = Servers(loop, {"a": 0}, flush=NEVER)
    with with_servers(servers):
        connection = servers.connection()
        servers.start(connection, *range(5))
        loop.run_for(10)
    assert set(servers.ended.values()) == {(5, BroadcastUncertain)}


def test_a_thread_that_cannot_be_started_is_an_error_and_is_started_by_the_next_call() -> None:
    connection = adapter._Connection(["nats://127.0.0.1:1"], {}, "NATS")
    done = asyncio.sleep(0)
    with (
        mock.patch.object(connection.thread, "start", side_effect=RuntimeError("can't start new thread")),
        pytest.raises(BroadcastError, match="Nothing was broadcast: can't start new thread"),
    ):
        connection.submit(done)
    connection.submit(asyncio.sleep(0)).result(30)
    connection.stop()
    connection.thread.join(30)
    assert not connection.thread.is_alive()
