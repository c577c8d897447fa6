"""Outages of a database while a client connects, subscribes or comes back. They never reject a client for good."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from channels.testing import WebsocketCommunicator
from django.db import InterfaceError, OperationalError, ProgrammingError, connection

from reliable_cable import BroadcastError, BroadcastUncertain, CableConsumer, Channel, StoreError, action, state
from reliable_cable.channel import registry
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.connection import commands as execution_module
from reliable_cable.connection import restore as restore_module

from .wire import Client, identifier


class Room(Channel, abstract=True):
    """Fails `fail_times` times in the methods that `failing` names, as a query does during an outage."""

    count = state(default=0)

    failing: ClassVar[str] = "subscribed"
    fail_times: ClassVar[int] = 0
    error: ClassVar[type[Exception]] = OperationalError
    #: The channel objects whose `subscribed` ran.
    runs: ClassVar[list[Room]] = []
    handled: ClassVar[list[str]] = []
    failed: ClassVar[asyncio.Event]

    @classmethod
    def query(cls, what: str) -> None:
        """Fail if `failing` names this place and `fail_times` is not used up."""
        if what == cls.failing and cls.fail_times:
            cls.fail_times -= 1
            cls.failed.set()
            raise cls.error("the database is away")

    async def before_subscribe(self) -> None:
        self.query("before_subscribe")

    async def subscribed(self) -> None:
        self.runs.append(self)
        self.transmit({"run": len(self.runs)})
        self.stream_from("room")
        self.query("subscribed")

    async def resubscribed(self) -> None:
        self.transmit({"count": self.count})
        self.count += 1
        self.query("resubscribed")

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the wire's name
        self.query("authorize_presence")
        return True

    @action
    async def increment(self) -> None:
        self.count += 1
        self.transmit({"count": self.count})

    def handle_error(self, error: Exception, handler: str) -> None:
        self.handled.append(handler)
        if handler == "subscribed":
            self.transmit({"failed": handler})


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _room(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    monkeypatch.setattr(execution_module, "RETRY_DELAY", 0.001)
    monkeypatch.setattr(restore_module, "RETRY_DELAY", 0.001)
    for name, value in {"failing": "subscribed", "fail_times": 0, "runs": [], "handled": []}.items():
        monkeypatch.setattr(Room, name, value)
    monkeypatch.setattr(Room, "failed", asyncio.Event(), raising=False)
    registry["Room"] = [Room]
    yield
    del registry["Room"]


@pytest.mark.parametrize("error", [OperationalError, InterfaceError, StoreError])
async def test_subscribed_is_run_again_on_a_fresh_channel(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setattr(Room, "error", error)
    monkeypatch.setattr(Room, "fail_times", 3)
    async with Client() as client:
        await client.send("subscribe", ROOM)
        # The failed runs had no effect.
        assert await client.receive() == {"identifier": ROOM, "message": {"run": 4}}
        assert await client.receive() == {"type": "confirm_subscription", "identifier": ROOM}
        assert await client.quiet()
        assert len(set(map(id, Room.runs))) == 4
    assert Room.handled == []


@pytest.mark.parametrize("failing", ["before_subscribe", "authorize_presence"])
async def test_so_are_the_checks_of_a_subscription(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    monkeypatch.setattr(Room, "failing", failing)
    monkeypatch.setattr(Room, "fail_times", 2)
    async with Client() as client:
        await client.send("subscribe", ROOM, presence={"id": "ann"})
        received = await client.receive_many(3)
        assert [frame.get("type", "message") for frame in received] == ["message", "confirm_subscription", "presence"]
        assert received[2]["message"] == {"type": "join", "id": "ann", "info": None}


async def test_a_client_is_sent_away_to_come_back_when_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "fail_times", 1000)
    monkeypatch.setattr(execution_module, "SUBSCRIBE_TIMEOUT", 0.05)
    async with Client() as client:
        await client.send("subscribe", ROOM)
        # The error handler's transmission, and neither a rejection nor a `disconnect`: the session may be resumed.
        assert await client.receive() == {"identifier": ROOM, "message": {"failed": "subscribed"}}
        assert await client.communicator.receive_output(timeout=5) == {"type": "websocket.close", "code": 1000}
    assert Room.handled == ["subscribed"], "for the last run only"


async def test_other_errors_reject_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "error", LookupError)
    monkeypatch.setattr(Room, "fail_times", 1)
    async with Client() as client:
        await client.send("subscribe", ROOM)
        assert await client.receive() == {"identifier": ROOM, "message": {"failed": "subscribed"}}
        assert await client.receive() == {"type": "reject_subscription", "identifier": ROOM}
        assert len(Room.runs) == 1


async def test_who_unsubscribes_meanwhile_is_answered_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "fail_times", 1_000_000)
    async with Client() as client:
        await client.send("subscribe", ROOM)
        await asyncio.wait_for(Room.failed.wait(), 5)
        await client.send("unsubscribe", ROOM)
        # Commands run one after another: this one after the subscribe.
        await client.send("presence", ROOM)
        assert (await client.receive())["message"] == {"type": "error"}
        assert await client.quiet()
    assert Room.handled == []


async def test_a_subscribe_after_the_unsubscribe_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "fail_times", 1_000_000)
    async with Client() as client:
        await client.send("subscribe", ROOM)
        await asyncio.wait_for(Room.failed.wait(), 5)
        await client.send("unsubscribe", ROOM)
        await client.send("subscribe", ROOM)
        await client.quiet()
        monkeypatch.setattr(Room, "fail_times", 0)
        assert [(await client.receive()).get("type") for _ in range(2)] == [None, "confirm_subscription"]
        assert await client.quiet()


async def test_nothing_is_tried_for_a_connection_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "fail_times", 1_000_000)
    async with Client() as client:
        await client.send("subscribe", ROOM)
        await asyncio.wait_for(Room.failed.wait(), 5)
    # The connection's end waits for its commands.
    runs = len(Room.runs)
    await asyncio.sleep(0.01)
    assert len(Room.runs) == runs


async def test_a_restored_subscription_waits_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Client() as former:
        await former.subscribe(ROOM)
        await former.perform(ROOM, "increment")
        assert (await former.receive())["message"] == {"count": 1}
    monkeypatch.setattr(Room, "failing", "resubscribed")
    monkeypatch.setattr(Room, "fail_times", 3)
    async with Client(former.sid) as client:
        assert client.welcome["restored_ids"] == [ROOM]
        assert await client.receive() == {"identifier": ROOM, "message": {"count": 1}}
    assert Room.handled == []


async def test_a_subscription_that_cannot_be_restored_is_left_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Client() as former:
        await former.subscribe(ROOM)
    monkeypatch.setattr(restore_module, "RESTORE_TIMEOUT", 0.05)
    monkeypatch.setattr(Room, "failing", "resubscribed")
    monkeypatch.setattr(Room, "fail_times", 1_000_000)
    async with Client(former.sid) as client:
        assert client.welcome["restored_ids"] == []
        await client.subscribe(ROOM)
    assert Room.handled == ["resubscribed"], "for the last run only"


async def test_a_client_whose_connect_failed_is_not_told_that_it_is_unauthorized() -> None:
    class Consumer(CableConsumer):
        def connect(self) -> None:
            raise OperationalError("the database is away")

    communicator = WebsocketCommunicator(Consumer.as_asgi(), "/cable", subprotocols=["actioncable-v1-ext-json"])
    # The handshake fails, as during a restart of the server, and clients try again.
    assert await communicator.connect() == (False, 1000)


def test_an_outage_is_told_from_other_errors() -> None:
    def caused(error: Exception, cause: Exception) -> Exception:
        error.__cause__ = cause
        return error

    away = OperationalError("away")
    assert is_outage(away)
    assert is_outage(caused(BroadcastError("refused"), away))
    assert not is_outage(BroadcastError("the stream keeps no history"))
    assert not is_outage(caused(BroadcastUncertain("perhaps"), away)), "again, it might be broadcast twice"
    assert not is_outage(LookupError())


@pytest.mark.django_db
def test_a_missing_table_is_no_outage() -> None:
    with pytest.raises((OperationalError, ProgrammingError)) as caught, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM a_table_without_its_migration")
    assert not is_outage(caught.value), "the same query fails for ever, and its client would come back for ever"
