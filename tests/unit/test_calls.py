"""An action that a client calls with an id is answered with the result (see Protocol: Calls)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import OperationalError

from reliable_cable import Channel, action, state
from reliable_cable.channel import registry

from .wire import BASE, EXTENDED, Client, identifier


class Room(Channel, abstract=True):
    count = state(default=0)

    def before_action(self, action: str, data: Any) -> bool:
        return "stranger" not in data

    @action
    def double(self, data: dict[str, Any]) -> Any:
        return data["number"] * 2

    @action
    async def adouble(self, data: dict[str, Any]) -> Any:
        return data["number"] * 2

    @action
    def give(self, data: dict[str, Any]) -> Any:
        return data["value"]

    @action
    def keys(self, data: dict[str, Any]) -> Any:
        return sorted(data)

    @action
    def greet(self) -> str:
        self.transmit("hello")
        return "greeted"

    @action
    def unencodable(self) -> object:
        self.count += 1
        self.transmit("this is dropped")
        return object()

    @action
    async def large(self) -> str:
        return "x" * 2000

    @action
    def fail(self) -> None:
        raise RuntimeError("a secret")

    @action
    def refuse(self) -> None:
        raise PermissionDenied("a reason")

    @action
    def lose_the_database(self) -> None:
        self.connection.attempts = getattr(self.connection, "attempts", 0) + 1
        raise OperationalError("gone")

    @action
    def attempts(self) -> Any:
        return [self.connection.attempts, self.count]


class Explaining(Room, abstract=True):
    def handle_error(self, error: Exception, handler: str) -> None:
        self.transmit({"failed": handler})


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _rooms(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "MAX_BROADCAST_SIZE": 1024}
    registry.update({"Room": [Room], "Explaining": [Explaining]})
    yield
    del registry["Room"], registry["Explaining"]


@pytest.fixture(params=[EXTENDED, BASE])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """A client that has subscribed to `Room`, once with each protocol."""
    async with Client(protocol=request.param) as client:
        await client.subscribe(ROOM)
        yield client


async def call(client: Client, name: str, room: str = ROOM, **data: Any) -> Any:
    """Call an action with the id "c1"; return the next message."""
    await client.perform(room, name, **{"$call": "c1"}, **data)
    frame = await client.receive()
    assert frame.pop("identifier") == room
    assert list(frame) == ["message"]
    return frame["message"]


@pytest.mark.parametrize("name", ["double", "adouble"])
async def test_a_call_is_answered_with_the_result(client: Client, name: str) -> None:
    assert await call(client, name, number=21) == {"$answer": "c1", "result": 42}


@pytest.mark.parametrize("value", [None, False, 0, "", [], {"deep": [1]}, "\u2028</script>"])
async def test_every_json_value_can_be_a_result(client: Client, value: Any) -> None:
    assert await call(client, "give", value=value) == {"$answer": "c1", "result": value}


@pytest.mark.parametrize("name", ["double", "unencodable", "large"])
async def test_an_action_without_an_id_is_not_answered(client: Client, name: str) -> None:
    await client.perform(ROOM, name, number=21)
    if name == "unencodable":
        assert (await client.receive())["message"] == "this is dropped"
    assert await client.quiet()


async def test_the_id_is_not_part_of_the_data(client: Client) -> None:
    assert await call(client, "keys", more=1) == {"$answer": "c1", "result": ["action", "more"]}


async def test_the_answer_follows_the_other_transmissions_of_the_action(client: Client) -> None:
    assert await call(client, "greet") == "hello"
    assert (await client.receive())["message"] == {"$answer": "c1", "result": "greeted"}


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("fail", "failed"),
        ("refuse", "refused"),
        ("unencodable", "failed"),
        ("large", "failed"),
        ("lose_the_database", "failed"),
        ("missing", "unknown_action"),
    ],
)
async def test_a_call_without_a_result_is_answered_with_the_reason_only(client: Client, name: str, error: str) -> None:
    assert await call(client, name) == {"$answer": "c1", "error": error}
    assert await client.quiet()


async def test_a_call_that_a_check_refuses_is_answered(client: Client) -> None:
    assert await call(client, "double", number=1, stranger=True) == {"$answer": "c1", "error": "refused"}


async def test_a_call_without_a_subscription_is_answered(client: Client) -> None:
    await client.send("unsubscribe", ROOM)
    assert await call(client, "double", number=1) == {"$answer": "c1", "error": "not_subscribed"}


async def test_an_action_that_fails_in_an_outage_is_not_repeated(client: Client) -> None:
    await call(client, "lose_the_database")
    assert await call(client, "attempts") == {"$answer": "c1", "result": [1, 0]}


async def test_nothing_of_an_action_is_applied_if_its_result_cannot_be_encoded(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert await call(client, "lose_the_database")
    caplog.clear()
    assert await call(client, "unencodable") == {"$answer": "c1", "error": "failed"}
    (record,) = caplog.records
    assert record.getMessage() == "Room: unencodable failed."
    assert record.exc_info is not None
    assert "the result <object object" in str(record.exc_info[1])
    assert await call(client, "attempts") == {"$answer": "c1", "result": [1, 0]}


async def test_the_messages_of_handle_error_precede_the_answer(client: Client) -> None:
    room = identifier("Explaining")
    await client.subscribe(room)
    assert await call(client, "fail", room) == {"failed": "fail"}
    assert (await client.receive())["message"] == {"$answer": "c1", "error": "failed"}


@pytest.mark.parametrize("id_", ["", "x" * 65, 7, ["c1"], "\ud800"])
async def test_a_call_with_an_invalid_id_is_a_broken_frame(
    client: Client, id_: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await client.perform(ROOM, "double", number=1, **{"$call": id_})
    assert await client.quiet()
    assert "A frame was refused" in caplog.text


async def test_a_call_is_answered_on_its_own_connection_only(client: Client) -> None:
    async with Client() as other:
        await other.subscribe(ROOM)
        await call(client, "double", number=1)
        assert await other.quiet()


async def test_data_that_is_an_object_can_have_the_id(client: Client) -> None:
    await client.send_text(
        json.dumps({"command": "message", "identifier": ROOM, "data": {"action": "greet", "$call": "c2"}})
    )
    assert [(await client.receive())["message"] for _ in range(2)] == [
        "hello",
        {"$answer": "c2", "result": "greeted"},
    ]
