"""A channel can send its clients a snapshot in place of messages that are no longer stored."""

from __future__ import annotations

from typing import Any

import pytest

from reliable_cable import Channel, Snapshot, abroadcast, aforget, aposition
from tests.unit.wire import BASE, EXTENDED, Client, identifier, leave_session


class Total:
    """The numbers that a test has broadcast. `TotalChannel.snapshot` returns them, unless `refused` is True."""

    numbers: list[int]
    refused = False
    calls = 0


async def add(*numbers: int) -> None:
    """Broadcast numbers, and add them to the snapshot."""
    for number in numbers:
        await abroadcast("numbers", {"add": number})
        Total.numbers.append(number)


class TotalChannel(Channel):
    def subscribed(self) -> None:
        self.stream_from("numbers", after=self.params.get("after"))

    async def snapshot(self, stream: str) -> Snapshot | None:
        assert stream == "numbers"
        Total.calls += 1
        at = await aposition(stream)
        return None if Total.refused else Snapshot(at, {"all": list(Total.numbers)})


IDENTIFIER = identifier("TotalChannel")


@pytest.fixture(autouse=True)
def _memory(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "STREAMS": {"numbers": {"history_size": 3}}}
    Total.numbers, Total.refused, Total.calls = [], False, 0


class Reader:
    """The numbers that a client has after a snapshot and later messages, and the types of all received frames."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.position: dict[str, Any] | None = None
        self.types: list[str] = []

    async def read(self, client: Client, *, until: str | int) -> None:
        """Read frames until one has this type, or until there are this many numbers."""
        while (self.types[-1:] != [until]) if isinstance(until, str) else len(self.numbers) < until:
            frame = await client.receive()
            if "type" in frame:
                self.types.append(frame["type"])
                continue
            message = frame["message"]
            self.types.append(next(iter(message)))
            self.numbers = [*message["all"]] if "all" in message else [*self.numbers, message["add"]]
            if "offset" in frame:
                self.position = {frame["stream_id"]: {"epoch": frame["epoch"], "offset": frame["offset"]}}


async def test_a_client_without_a_position_gets_a_snapshot_before_the_answer() -> None:
    await add(1, 2)
    reader = Reader()
    async with Client() as client:
        await client.send("subscribe", IDENTIFIER, history={"since": 1})
        await reader.read(client, until="confirm_history")
        assert reader.types == ["confirm_subscription", "all", "confirm_history"]
        assert reader.position is not None
        assert reader.position["numbers"]["offset"] == 2
        await add(3)
        await reader.read(client, until=3)
    assert reader.numbers == [1, 2, 3]
    assert Total.calls == 1


@pytest.mark.parametrize("protocol", [BASE, EXTENDED])
async def test_a_client_that_requests_no_history_gets_one_too(protocol: str) -> None:
    await add(1)
    reader = Reader()
    async with Client(protocol=protocol) as client:
        await client.send("subscribe", IDENTIFIER)
        await reader.read(client, until=1)
        assert reader.types == ["confirm_subscription", "all"]
        assert (reader.position is None) is (protocol == BASE)
        await add(2)
        await reader.read(client, until=2)
    assert reader.numbers == [1, 2]


async def test_a_stream_without_messages_has_a_snapshot_without_a_position() -> None:
    reader = Reader()
    async with Client() as client:
        await client.send("subscribe", IDENTIFIER, history={"since": 1})
        await reader.read(client, until="confirm_history")
        assert reader.types == ["confirm_subscription", "all", "confirm_history"]
        assert reader.position is None
        await add(1)
        await reader.read(client, until=1)
    assert reader.numbers == [1]


async def test_a_position_with_its_messages_needs_no_snapshot() -> None:
    await add(1)
    at = await aposition("numbers")
    await add(2)
    reader = Reader()
    reader.numbers = [1]
    async with Client() as client:
        await client.send("subscribe", IDENTIFIER, history={"streams": {"numbers": at.as_dict()}})
        await reader.read(client, until="confirm_history")
    assert reader.numbers == [1, 2]
    assert Total.calls == 0


@pytest.mark.parametrize("restored", [False, True])
async def test_messages_that_are_lost_are_replaced(restored: bool) -> None:
    reader = Reader()
    async with Client() as client:
        await client.send("subscribe", IDENTIFIER, history={"since": 1})
        await add(1)
        await reader.read(client, until=1)
    sid = client.sid
    await add(*range(2, 31))
    async with Client(sid if restored else "") as client:
        assert client.welcome.get("restored_ids", []) == ([IDENTIFIER] if restored else [])
        await client.send(
            "history" if restored else "subscribe", IDENTIFIER, history={"since": 1, "streams": reader.position}
        )
        await reader.read(client, until="confirm_history")
        await add(31)
        await reader.read(client, until=31)
    assert "reject_history" not in reader.types
    assert reader.numbers == list(range(1, 32))


async def test_a_restored_client_that_received_nothing_gets_one() -> None:
    sid = await leave_session(Client(), IDENTIFIER)
    await add(1, 2)
    reader = Reader()
    async with Client(sid) as client:
        await client.send("history", IDENTIFIER, history={"since": 1})
        await reader.read(client, until="confirm_history")
    assert reader.types[0] == "all"
    assert reader.numbers == [1, 2]


async def test_a_live_client_gets_one_after_a_loss() -> None:
    reader = Reader()
    async with Client() as client:
        await client.send("subscribe", IDENTIFIER, history={"since": 1})
        await add(1)
        await reader.read(client, until=1)
        await aforget("numbers")
        await add(2, 3)
        await reader.read(client, until=3)
    assert "reject_history" not in reader.types
    assert reader.numbers == [1, 2, 3]


async def test_without_a_snapshot_the_client_is_told_of_the_loss() -> None:
    Total.refused = True
    reader = Reader()
    async with Client() as client:
        await client.send("subscribe", IDENTIFIER, history={"since": 1})
        await reader.read(client, until="reject_history")
        await add(1)
        await reader.read(client, until=1)
    assert reader.types == ["confirm_subscription", "reject_history", "add"]
