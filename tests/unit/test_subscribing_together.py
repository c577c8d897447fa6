"""The streams of `subscribe` commands that are queued together are opened together (see connection/openings.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from typing import Any

import pytest

from reliable_cable import Channel, action
from reliable_cable.broadcasting import abroadcast
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.consumer import get_hub
from reliable_cable.exceptions import StoreError
from reliable_cable.stores.engine import get_engine

from .wire import Client, connection_of, identifier, leave_session, registered, run_event_loop, until


class Room(Channel, abstract=True):
    """A channel that records the calls of its handlers, with the number of the room."""

    events: list[str]
    running: int

    async def subscribed(self) -> None:
        Room.running += 1
        assert Room.running == 1, "two handlers of one connection run at the same time"
        await asyncio.sleep(0)
        Room.running -= 1
        number = self.params["n"]
        Room.events.append(f"subscribed {number}")
        if number == "refused":
            return self.reject()
        if number == "broken":
            raise RuntimeError("the handler fails")
        for name in self.params.get("streams", [f"room {number}"]):
            self.stream_from(name)

    async def unsubscribed(self) -> None:
        Room.events.append(f"unsubscribed {self.params['n']}")

    @action
    async def speak(self) -> None:
        Room.events.append(f"speak {self.params['n']}")

    @action
    async def start(self, data: dict[str, Any]) -> None:
        for name in data["streams"]:
            self.stream_from(name)


class SlowStore:
    """Opens streams only when a test allows it, and records the names of the streams of each call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.proceed = asyncio.Event()
        #: A stream for which the store fails.
        self.broken = ""

    async def positions(self, names: Collection[str]) -> Any:
        if CONTROL_STREAM not in names:
            self.calls.append(list(names))
            await self.proceed.wait()
            await run_event_loop()  # as in a round trip, other tasks run meanwhile
        if self.broken in names:
            raise StoreError("broken")
        return [await get_engine().streams.aposition(name) for name in names]


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "MAX_SUBSCRIPTIONS": 500}
    Room.events, Room.running = [], 0
    with registered(Room=Room):
        yield


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> SlowStore:
    store = SlowStore()
    monkeypatch.setattr(get_engine().streams, "apositions", store.positions)
    return store


def room(number: Any, **params: Any) -> str:
    return identifier("Room", n=number, **params)


async def subscribe(client: Client, *numbers: Any) -> None:
    for number in numbers:
        await client.send("subscribe", room(number))


def confirmed(*numbers: Any) -> list[dict[str, Any]]:
    return [{"type": "confirm_subscription", "identifier": room(number)} for number in numbers]


async def test_a_hundred_streams_are_opened_with_a_few_calls(store: SlowStore) -> None:
    store.proceed.set()
    async with Client() as client:
        await subscribe(client, *range(100))
        assert await client.receive_many(100) == confirmed(*range(100))
        assert len(store.calls) <= 20
        for number in (0, 99):
            await abroadcast(f"room {number}", number + 1)
            assert (await client.receive())["message"] == number + 1


async def test_handlers_run_in_order_while_streams_are_being_opened(store: SlowStore) -> None:
    async with Client() as client:
        await subscribe(client, 1, 2, 3)
        await until(lambda: len(Room.events) == 3)
        assert Room.events == ["subscribed 1", "subscribed 2", "subscribed 3"]
        store.proceed.set()
        assert await client.receive_many(3) == confirmed(1, 2, 3)


async def test_other_commands_wait_until_the_streams_before_them_are_open(store: SlowStore) -> None:
    async with Client() as client:
        await subscribe(client, 1, 2)
        await client.perform(room(1), "speak")
        await client.send("unsubscribe", room(2))
        await subscribe(client, 3)
        await run_event_loop()
        assert Room.events == ["subscribed 1", "subscribed 2"]
        store.proceed.set()
        assert await client.receive_many(3) == confirmed(1, 2, 3)
        assert Room.events[2:] == ["speak 1", "unsubscribed 2", "subscribed 3"]


async def test_answers_come_in_the_order_of_the_commands(store: SlowStore) -> None:
    async with Client() as client:
        await subscribe(client, 1, "refused", "broken")
        await client.send("subscribe", identifier("Unknown"))
        await subscribe(client, 2)
        await run_event_loop()
        store.proceed.set()
        assert await client.receive_many(5) == [
            *confirmed(1),
            {"type": "reject_subscription", "identifier": room("refused")},
            {"type": "reject_subscription", "identifier": room("broken")},
            {"type": "reject_subscription", "identifier": identifier("Unknown")},
            *confirmed(2),
        ]


async def test_a_stream_that_cannot_be_opened_delays_no_other_stream(
    store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reliable_cable.hub.hub.RETRY_DELAY", 0.001)
    store.proceed.set()
    store.broken = "room 2"
    async with Client() as client, Client() as other:
        await subscribe(other, 2)
        await subscribe(client, 1, 3)
        assert await client.receive_many(2) == confirmed(1, 3)
        store.broken = ""
        assert await other.receive() == confirmed(2)[0]


async def test_the_handler_of_an_identifier_runs_once_although_it_is_repeated(store: SlowStore) -> None:
    async with Client() as client:
        await subscribe(client, 1, 2, 1, 2)
        await run_event_loop()
        await subscribe(client, 1)
        await run_event_loop()
        store.proceed.set()
        assert await client.receive_many(2) == confirmed(1, 2)
        assert await client.quiet()
        assert Room.events == ["subscribed 1", "subscribed 2"]


async def test_no_more_subscriptions_than_allowed_are_made(store: SlowStore, settings: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "MAX_SUBSCRIPTIONS": 2}
    async with Client() as client:
        await subscribe(client, 1, "refused", 2, 3)
        await run_event_loop()
        store.proceed.set()
        types = [(await client.receive())["type"] for _ in range(4)]
        assert types == ["confirm_subscription", "reject_subscription", "confirm_subscription", "reject_subscription"]


async def test_a_connection_that_ends_meanwhile_leaves_no_stream_open(store: SlowStore) -> None:
    async with Client() as client:
        await subscribe(client, *range(4))
        await run_event_loop()
        hub, connection = get_hub(), connection_of(client)
        await client.communicator.send_input({"type": "websocket.disconnect", "code": 1006})
        await until(lambda: connection.closed)
        store.proceed.set()
    await until(lambda: not hub._streams and not hub.connections.all())
    assert sorted(Room.events[4:]) == [f"unsubscribed {number}" for number in range(4)]


async def test_pending_subscribes_are_answered_before_the_server_closes_the_connection(store: SlowStore) -> None:
    async with Client() as client:
        await subscribe(client, 1, 2, 3)
        await run_event_loop()
        closing = asyncio.ensure_future(connection_of(client).drain(0))
        await run_event_loop()
        store.proceed.set()
        assert await client.receive_many(3) == confirmed(1, 2, 3)
        await closing


async def test_the_streams_of_one_handler_are_opened_together(store: SlowStore) -> None:
    store.proceed.set()
    names = [f"stream {number}" for number in range(50)]
    async with Client() as client:
        await client.subscribe(room(1, streams=names[:25]))
        await client.perform(room(1, streams=names[:25]), "start", streams=names[25:])
        await until(lambda: len(store.calls) > 1)
        assert store.calls == [names[:25], names[25:]]


async def test_a_session_is_restored_with_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    sid = await leave_session(Client(), *(room(number) for number in range(50)))
    store = SlowStore()
    store.proceed.set()
    monkeypatch.setattr(get_engine().streams, "apositions", store.positions)
    async with Client(sid) as client:
        assert client.welcome["restored_ids"] == [room(number) for number in range(50)]
    assert [len(call) for call in store.calls] == [50]
