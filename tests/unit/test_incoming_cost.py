"""What a message from a client may cost, counted: tasks, looks at database connections, JSON of the state.

The benchmark (`python -m tests.benchmarks incoming`) says what it costs a whole server.
"""

from __future__ import annotations

import asyncio
import json
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
from reliable_cable.channel import registry
from reliable_cable.concurrency import threads
from reliable_cable.connection import connection as module
from reliable_cable.consumer import CableConsumer, get_hub

from .wire import EXTENDED, identifier

MESSAGES = 100
PACKAGE = Path(reliable_cable.__file__).parent
#: Python functions of this package for one action, coroutines that go on included. Measured were 28.
MOST_CALLS = 30


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
    # Handlers would wait for a thread now and then, if another test has left a database connection.
    monkeypatch.setattr(threads, "_connected", set())
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    registry["Room"] = [Room]
    yield
    del registry["Room"]


async def settled() -> None:
    """Let everything happen that waits for nothing but the event loop."""
    for _ in range(10):
        await asyncio.sleep(0)


class Connection:
    """A connection without a server: what it receives is put in, what it sends comes out."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[Any] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def send(self, message: dict[str, Any]) -> None:
        """Stand for the ASGI `send`."""
        frame = json.loads(message.get("text", "{}"))
        self.sent.append(frame)
        if frame.get("type") == "presence":
            self.answers.put_nowait(frame)

    @property
    def session(self) -> Any:
        """The one of this event loop."""
        (session,) = get_hub().connections.all()
        return session

    def put(self, command: str, **body: Any) -> None:
        """Receive a command."""
        text = json.dumps({"command": command, "identifier": ROOM, **body})
        self.incoming.put_nowait({"type": "websocket.receive", "text": text})

    async def answered(self) -> None:
        """Wait until all commands so far were handled: this question is answered after them, and nothing else is."""
        self.put("presence", identifier="nobody")
        await asyncio.wait_for(self.answers.get(), 10)

    async def perform(self, name: str, count: int = 1) -> None:
        """Call an action, each time when nothing else is going on."""
        for _ in range(count):
            self.put("message", data=json.dumps({"action": name}))
            await settled()


@asynccontextmanager
async def connected() -> AsyncIterator[Connection]:
    """Open a connection that is subscribed."""
    made = Connection()
    scope = {"type": "websocket", "subprotocols": [EXTENDED], "headers": [], "query_string": b""}
    task = asyncio.ensure_future(CableConsumer.as_asgi()(scope, made.incoming.get, made.send))
    made.incoming.put_nowait({"type": "websocket.connect"})
    made.put("subscribe")
    await made.answered()
    await settled()
    try:
        yield made
    finally:
        made.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await asyncio.wait_for(task, 10)


@pytest.fixture
async def room() -> AsyncIterator[Connection]:
    """A connection that is subscribed."""
    async with connected() as made:
        yield made


@contextmanager
def tasks_made() -> Iterator[list[str]]:
    """What tasks are made for meanwhile."""
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        yield made
    finally:
        loop.set_task_factory(None)


async def test_messages_that_come_one_after_another_cost_one_task(room: Connection) -> None:
    with tasks_made() as tasks:
        await room.perform("nothing", MESSAGES)
    assert tasks == ["CommandQueue._run"]


async def test_a_client_that_sends_nothing_any_more_has_no_task(room: Connection) -> None:
    before = asyncio.all_tasks()
    await room.perform("nothing")
    assert len(asyncio.all_tasks() - before) == 1
    assert room.session.ping("a ping")
    await settled()
    assert asyncio.all_tasks() == before


async def test_who_only_subscribes_leaves_no_task_behind(room: Connection) -> None:
    room.put("unsubscribe")
    room.put("subscribe")
    await room.answered()
    await settled()
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    assert "CommandQueue._run" not in names


async def test_a_ping_interrupts_no_handler(room: Connection) -> None:
    await room.perform("wait")
    room.session.ping("a ping")
    await room.perform("increase")
    subscription = room.session.subscriptions[ROOM]
    assert subscription.channel.dump_state() == {}, "it waits for the one before"
    worker = room.session.commands._task
    assert worker is not None
    worker.cancel()


async def test_what_comes_as_the_worker_is_told_to_end_is_handled(room: Connection) -> None:
    await room.perform("increase")
    room.session.ping("a ping")
    await room.perform("increase")
    await room.perform("increase")
    assert room.session.subscriptions[ROOM].channel.dump_state() == {"count": 3}


async def test_nobody_waits_for_a_worker_that_has_nothing_to_do(room: Connection) -> None:
    await room.perform("nothing")
    await asyncio.wait_for(room.session.commands.finished(), 5)


async def test_each_handler_can_be_timed_out(room: Connection) -> None:
    for _ in range(2):
        room.put("message", data=json.dumps({"action": "slow"}))
        await room.answered()
    messages = [frame["message"] for frame in room.sent if "message" in frame and "type" not in frame]
    assert messages == [{"cancelling": 0}] * 2


async def test_an_action_calls_few_functions(room: Connection) -> None:
    count = 0

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call" and Path(frame.f_code.co_filename).is_relative_to(PACKAGE)

    await room.perform("nothing")
    former = sys.getprofile()
    sys.setprofile(profile)
    try:
        await room.perform("nothing", MESSAGES)
    finally:
        sys.setprofile(former)
    assert MESSAGES <= count <= MOST_CALLS * MESSAGES


async def test_the_state_is_dumped_before_and_after_an_action(
    room: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps: list[dict[str, Any]] = []
    dump_state = Room.dump_state

    def counted(channel: Room) -> dict[str, Any]:
        dumps.append(dump_state(channel))
        return dumps[-1]

    monkeypatch.setattr(Room, "dump_state", counted)
    monkeypatch.setattr(module.Connection, "save", _no_save)
    await room.perform("increase")
    assert dumps == [{}, {"count": 1}]


async def _no_save(connection: Any) -> None:
    """What is saved is dumped, too."""


class TestDatabaseConnections:
    """They are looked after where a handler has used one, and only there."""

    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """How often a thread's connections are looked at."""
        found: list[str] = []

        class Looked:
            close_all = connections.close_all

            @staticmethod
            def all(initialized_only: bool = False) -> Any:
                found.append("")
                return connections.all(initialized_only=initialized_only)

        monkeypatch.setattr(threads, "connections", Looked)
        monkeypatch.setattr(threads, "_refreshed", 0.0)
        return found

    async def test_handlers_that_do_not_use_one_cost_no_look(self, room: Connection, looks: list[str]) -> None:
        for name in ("nothing", "sync_nothing"):
            await room.perform(name, 10)
            await room.answered()
        assert looks == []

    @pytest.mark.django_db(transaction=True)
    async def test_one_that_a_handler_opened_is_closed_after_it(self, room: Connection, looks: list[str]) -> None:
        room.put("message", data=json.dumps({"action": "query"}))
        await room.answered()
        assert looks == [""]
        assert threads._connected == set()

    @pytest.mark.django_db(transaction=True)
    async def test_one_that_stays_open_is_looked_at_before_and_after_each(
        self, room: Connection, looks: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "HANDLER_THREADS": 1}
        for _ in range(2):
            room.put("message", data=json.dumps({"action": "query"}))
            await room.answered()
        assert looks == [""] * 3
        assert len(threads._connected) == 1
        await threads.run_handler(connections.close_all)
