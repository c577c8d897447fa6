"""A message from a client costs few tasks, function calls and checks of database connections.

The benchmark (`python -m tests.benchmarks incoming`) measures the cost for a whole server.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from django.db import connection, connections

import reliable_cable
from reliable_cable import Channel, action, state
from reliable_cable.concurrency import database_connections, django_thread, threads
from reliable_cable.connection import connection as connection_module
from reliable_cable.consumer import CableConsumer, get_hub

from .wire import EXTENDED, identifier, registered

MESSAGES = 100
PACKAGE = Path(reliable_cable.__file__).parent
#: How many calls of this package's functions one action may cost. Each resumption of a coroutine counts as a call. The
#: measured number is 31.
MAX_CALLS = 33


class Room(Channel, abstract=True):
    count = state(default=0)

    @action
    async def nothing(self) -> None:
        pass

    @action
    def sync_nothing(self) -> None:
        pass

    @action
    async def increase(self) -> None:
        self.count += 1

    @action
    async def slow(self) -> None:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            task = asyncio.current_task()
            assert task is not None
            self.transmit({"cancelling": task.cancelling()})

    @action
    def query(self) -> None:
        connection.ensure_connection()

    @action
    async def wait(self) -> None:
        await asyncio.Event().wait()


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _room(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Database connections that other tests have left open do not count.
    monkeypatch.setattr(database_connections, "connected_threads", set())
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    with registered(Room=Room):
        yield


async def run_event_loop() -> None:
    """Run 10 iterations of the event loop: enough to handle one message."""
    for _ in range(10):
        await asyncio.sleep(0)


class AsgiClient:
    """A client that calls the ASGI application without a server."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[Any] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, message: dict[str, Any]) -> None:
        """Take the place of the ASGI `send`."""
        frame = json.loads(message.get("text", "{}"))
        self.sent.append(frame)
        if frame.get("type") == "presence":
            self.answers.put_nowait(frame)

    @property
    def connection(self) -> Any:
        """The only connection of this event loop."""
        (connection,) = get_hub().connections.all()
        return connection

    def put(self, command: str, **body: Any) -> None:
        """Send a command."""
        text = json.dumps({"command": command, "identifier": ROOM, **body})
        self.incoming.put_nowait({"type": "websocket.receive", "text": text})

    async def handled(self) -> None:
        """Wait until all commands have been handled, by waiting for the response to one more command."""
        self.put("presence", identifier="unknown")
        await asyncio.wait_for(self.answers.get(), 10)

    async def perform(self, name: str, count: int = 1) -> None:
        """Call an action several times, each time after the previous call has been handled."""
        for _ in range(count):
            self.put("message", data=json.dumps({"action": name}))
            await run_event_loop()


@asynccontextmanager
async def connected() -> AsyncIterator[AsgiClient]:
    """Open a connection and subscribe to `Room`."""
    client = AsgiClient()
    scope = {"type": "websocket", "subprotocols": [EXTENDED], "headers": [], "query_string": b""}
    task = asyncio.ensure_future(CableConsumer.as_asgi()(scope, client.incoming.get, client.send))
    client.incoming.put_nowait({"type": "websocket.connect"})
    client.put("subscribe")
    await client.handled()
    await run_event_loop()
    try:
        yield client
    finally:
        client.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(task, 10)


@pytest.fixture
async def room() -> AsyncIterator[AsgiClient]:
    """A client that has subscribed to `Room`."""
    async with connected() as client:
        yield client


@contextmanager
def recorded_tasks() -> Iterator[list[str]]:
    """Record the names of the coroutines for which tasks are created."""
    names: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        names.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        yield names
    finally:
        loop.set_task_factory(None)


async def test_successive_messages_cost_one_task(room: AsgiClient) -> None:
    with recorded_tasks() as tasks:
        await room.perform("nothing", MESSAGES)
    assert tasks == ["CommandQueue._run"]


async def test_a_client_that_has_stopped_sending_has_no_task(room: AsgiClient) -> None:
    before = asyncio.all_tasks()
    await room.perform("nothing")
    assert len(asyncio.all_tasks() - before) == 1
    assert room.connection.ping("a ping")
    await run_event_loop()
    assert not asyncio.all_tasks() - before


async def test_a_subscribe_leaves_no_task(room: AsgiClient) -> None:
    room.put("unsubscribe")
    room.put("subscribe")
    await room.handled()
    await run_event_loop()
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    assert "CommandQueue._run" not in names


async def test_a_ping_interrupts_no_handler(room: AsgiClient) -> None:
    await room.perform("wait")
    room.connection.ping("a ping")
    await room.perform("increase")
    subscription = room.connection.subscriptions[ROOM]
    assert subscription.channel.dump_state() == {}, "the action did not wait for the one before it"
    worker = room.connection.commands._task
    assert worker is not None
    worker.cancel()


async def test_a_message_that_arrives_while_the_worker_is_ending_is_handled(room: AsgiClient) -> None:
    await room.perform("increase")
    room.connection.ping("a ping")
    await room.perform("increase")
    await room.perform("increase")
    assert room.connection.subscriptions[ROOM].channel.dump_state() == {"count": 3}


async def test_waiting_for_commands_to_finish_ends_although_the_worker_is_idle(room: AsgiClient) -> None:
    await room.perform("nothing")
    await asyncio.wait_for(room.connection.commands.finished(), 5)


async def test_each_handler_can_be_timed_out(room: AsgiClient) -> None:
    for _ in range(2):
        room.put("message", data=json.dumps({"action": "slow"}))
        await room.handled()
    messages = [frame["message"] for frame in room.sent if "message" in frame and "type" not in frame]
    assert messages == [{"cancelling": 0}] * 2


async def test_an_action_calls_few_functions(room: AsgiClient) -> None:
    count = 0

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call" and Path(frame.f_code.co_filename).is_relative_to(PACKAGE)

    await room.perform("nothing")
    counts = []
    former = sys.getprofile()
    # If the machine is busy, timers run between the actions, so only the smallest of several counts is checked.
    for _ in range(5):
        count = 0
        sys.setprofile(profile)
        try:
            await room.perform("nothing", MESSAGES)
        finally:
            sys.setprofile(former)
        counts.append(count)
    assert MESSAGES <= min(counts) <= MAX_CALLS * MESSAGES


async def test_the_state_is_dumped_before_and_after_an_action(
    room: AsgiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps: list[dict[str, Any]] = []
    dump_state = Room.dump_state

    def counted(channel: Room) -> dict[str, Any]:
        dumps.append(dump_state(channel))
        return dumps[-1]

    # The record of the new session is written some time after the subscribe. The write calls `dump_state`, too.
    await room.connection.hub.sessions.flush()
    monkeypatch.setattr(Room, "dump_state", counted)
    monkeypatch.setattr(connection_module.Connection, "save", _no_save)
    await room.perform("increase")
    assert dumps == [{}, {"count": 1}]


async def _no_save(connection: Any) -> None:
    """Save nothing. A real save would call `dump_state`, too, and the test counts these calls."""


class TestDatabaseConnections:
    """Database connections are checked only in threads whose handlers have used one."""

    @pytest.fixture
    def checks(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """A list with one item for each check of a thread's connections."""
        calls: list[str] = []

        class Connections:
            close_all = connections.close_all

            @staticmethod
            def all(initialized_only: bool = False) -> Any:
                calls.append("check")
                return connections.all(initialized_only=initialized_only)

        monkeypatch.setattr(database_connections, "connections", Connections)
        monkeypatch.setattr(django_thread, "_refreshed", 0.0)
        # Threads without connections look for them once per interval. These tests do not count that.
        monkeypatch.setattr(database_connections, "LOOK_INTERVAL", math.inf)
        monkeypatch.setattr(database_connections, "_times", database_connections._Times())
        return calls

    async def test_handlers_that_use_no_connection_cause_no_check(self, room: AsgiClient, checks: list[str]) -> None:
        for name in ("nothing", "sync_nothing"):
            await room.perform(name, 10)
            await room.handled()
        assert checks == []

    @pytest.mark.django_db(transaction=True)
    async def test_a_connection_that_a_handler_opened_is_closed_after_the_handler(
        self, room: AsgiClient, checks: list[str]
    ) -> None:
        room.put("message", data=json.dumps({"action": "query"}))
        await room.handled()
        assert checks == ["check"]
        assert database_connections.connected_threads == set()

    @pytest.mark.django_db(transaction=True)
    async def test_a_persistent_connection_is_checked_before_and_after_each_handler(
        self, room: AsgiClient, checks: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "HANDLER_THREADS": 1}
        for _ in range(2):
            room.put("message", data=json.dumps({"action": "query"}))
            await room.handled()
        assert checks == ["check"] * 3
        assert len(database_connections.connected_threads) == 1
        await threads.run_handler(connections.close_all)
