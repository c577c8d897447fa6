"""If a database fails while a client connects, subscribes or reconnects, the client is not rejected for good."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from django.db import InterfaceError, OperationalError, ProgrammingError, connection

from reliable_cable import BroadcastError, BroadcastUncertain, CableConsumer, Channel, StoreError, action, state
from reliable_cable.concurrency.outages import is_outage
from reliable_cable.connection import commands as commands_module
from reliable_cable.connection import restore as restore_module

from .wire import Client, Communicator, identifier, registered


class Room(Channel, abstract=True):
    """Fails `fail_times` times in the method that `failing` names, like a query during an outage."""

    count = state(default=0)

    failing: ClassVar[str] = "subscribed"
    fail_times: ClassVar[int] = 0
    error: ClassVar[type[Exception]] = OperationalError
    #: The channel objects whose `subscribed` ran.
    runs: ClassVar[list[Room]] = []
    handled: ClassVar[list[str]] = []
    failed: ClassVar[asyncio.Event]

    @classmethod
    def query(cls, method: str) -> None:
        """Fail if `failing` is this method and `fail_times` is not used up."""
        if method == cls.failing and cls.fail_times:
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

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the name in the protocol
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
    monkeypatch.setattr(commands_module, "RETRY_DELAY", 0.001)
    monkeypatch.setattr(restore_module, "RETRY_DELAY", 0.001)
    for name, value in {"failing": "subscribed", "fail_times": 0, "runs": [], "handled": []}.items():
        monkeypatch.setattr(Room, name, value)
    monkeypatch.setattr(Room, "failed", asyncio.Event(), raising=False)
    with registered(Room=Room):
        yield


async def begin_to_subscribe(client: Client) -> None:
    """Send a subscribe, and wait until its first attempt has failed."""
    await client.send("subscribe", ROOM)
    await asyncio.wait_for(Room.failed.wait(), 5)


@pytest.mark.parametrize("error", [OperationalError, InterfaceError, StoreError])
async def test_subscribed_is_retried_on_a_new_channel_object(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setattr(Room, "error", error)
    monkeypatch.setattr(Room, "fail_times", 3)
    async with Client() as client:
        await client.send("subscribe", ROOM)
        # Nothing was sent for the failed calls of `subscribed`.
        assert await client.receive() == {"identifier": ROOM, "message": {"run": 4}}
        assert await client.receive() == {"type": "confirm_subscription", "identifier": ROOM}
        assert await client.quiet()
        assert len(set(map(id, Room.runs))) == 4
    assert Room.handled == []


@pytest.mark.parametrize("failing", ["before_subscribe", "authorize_presence"])
async def test_the_checks_of_a_subscription_are_retried(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    monkeypatch.setattr(Room, "failing", failing)
    monkeypatch.setattr(Room, "fail_times", 2)
    async with Client() as client:
        await client.send("subscribe", ROOM, presence={"id": "ann"})
        received = await client.receive_many(3)
        assert [frame.get("type", "message") for frame in received] == ["message", "confirm_subscription", "presence"]
        assert received[2]["message"] == {"type": "join", "id": "ann", "info": None}


async def test_a_client_is_disconnected_so_that_it_retries_if_the_outage_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "fail_times", 1000)
    monkeypatch.setattr(commands_module, "SUBSCRIBE_TIMEOUT", 0.05)
    async with Client() as client:
        await client.send("subscribe", ROOM)
        # After the transmission of the error handler, neither a rejection nor a `disconnect` is sent. The session can
        # be restored.
        assert await client.receive() == {"identifier": ROOM, "message": {"failed": "subscribed"}}
        assert await client.communicator.receive_output(timeout=30) == {"type": "websocket.close", "code": 1000}
    assert Room.handled == ["subscribed"], "not only the last attempt called the error handler"


async def test_other_errors_reject_the_subscription_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "error", LookupError)
    monkeypatch.setattr(Room, "fail_times", 1)
    async with Client() as client:
        await client.send("subscribe", ROOM)
        assert await client.receive() == {"identifier": ROOM, "message": {"failed": "subscribed"}}
        assert await client.receive() == {"type": "reject_subscription", "identifier": ROOM}
        assert len(Room.runs) == 1


async def test_an_unsubscribe_during_the_outage_ends_the_attempts_without_a_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Room, "fail_times", 1_000_000)
    async with Client() as client:
        await begin_to_subscribe(client)
        await client.send("unsubscribe", ROOM)
        # Commands run one after another, so this command runs after the subscribe.
        await client.send("presence", ROOM)
        assert (await client.receive())["message"] == {"type": "error"}
        assert await client.quiet()
    assert Room.handled == []


async def test_a_subscribe_after_that_unsubscribe_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "fail_times", 1_000_000)
    async with Client() as client:
        await begin_to_subscribe(client)
        await client.send("unsubscribe", ROOM)
        await client.send("subscribe", ROOM)
        await client.quiet()
        monkeypatch.setattr(Room, "fail_times", 0)
        assert [(await client.receive()).get("type") for _ in range(2)] == [None, "confirm_subscription"]
        assert await client.quiet()


async def test_a_closed_connection_ends_the_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Room, "fail_times", 1_000_000)
    async with Client() as client:
        await begin_to_subscribe(client)
    # The end of a connection waits for its commands.
    runs = len(Room.runs)
    await asyncio.sleep(0.01)
    assert len(Room.runs) == runs


async def test_restoring_a_subscription_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_the_client_subscribes_again_if_its_subscription_cannot_be_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Client() as former:
        await former.subscribe(ROOM)
    monkeypatch.setattr(restore_module, "RESTORE_TIMEOUT", 0.05)
    monkeypatch.setattr(Room, "failing", "resubscribed")
    monkeypatch.setattr(Room, "fail_times", 1_000_000)
    async with Client(former.sid) as client:
        assert client.welcome["restored_ids"] == []
        await client.subscribe(ROOM)
    assert Room.handled == ["resubscribed"], "not only the last attempt called the error handler"


async def test_a_client_whose_connect_failed_is_not_told_that_it_is_unauthorized() -> None:
    class Consumer(CableConsumer):
        def connect(self) -> None:
            raise OperationalError("the database is away")

    communicator = Communicator(Consumer.as_asgi(), "/cable", subprotocols=["actioncable-v1-ext-json"])
    # The handshake fails, as during a restart of the server. Clients then try again.
    assert await communicator.connect() == (False, 1000)


def test_outages_are_distinguished_from_other_errors() -> None:
    def caused(error: Exception, cause: Exception) -> Exception:
        error.__cause__ = cause
        return error

    outage = OperationalError("away")
    assert is_outage(outage)
    assert is_outage(caused(BroadcastError("refused"), outage))
    assert not is_outage(BroadcastError("the stream keeps no history"))
    assert not is_outage(caused(BroadcastUncertain("perhaps"), outage)), "a retry could broadcast the message twice"
    assert not is_outage(LookupError())


@pytest.mark.django_db
def test_a_missing_table_is_not_an_outage() -> None:
    with pytest.raises((OperationalError, ProgrammingError)) as caught, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM a_table_without_its_migration")
    assert not is_outage(caught.value), "the query would fail for ever, and the client would retry for ever"
