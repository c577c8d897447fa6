"""If a session is restored on another connection, its former connection is closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from reliable_cable import Channel, StoreError
from reliable_cable.broadcasting import abroadcast
from reliable_cable.channel import registry
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.consumer import get_hub
from reliable_cable.hub import control_bus, session_writer
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.sessions.base import SessionRecord
from reliable_cable.stores.streams.base import Message
from tests.support.records import load_record

from .wire import Client, connection_of, identifier, run_event_loop, send_control_message, until


class Room(Channel, abstract=True):
    #: Set to end `resubscribed`.
    gate: asyncio.Event
    #: How many calls of `resubscribed` have begun.
    restores = 0

    async def subscribed(self) -> None:
        self.stream_from("room")

    async def resubscribed(self) -> None:
        Room.restores += 1
        await Room.gate.wait()


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _memory(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    registry["Room"] = [Room]
    Room.gate, Room.restores = asyncio.Event(), 0
    yield
    del registry["Room"]


async def check_is_superseded(client: Client) -> None:
    """Check that a takeover by another process closes a connection."""
    await send_control_message({"supersede": [[client.sid, "elsewhere"]]})
    assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}


async def test_a_connection_whose_session_was_restored_elsewhere_is_closed_without_a_disconnect_message() -> None:
    async with Client() as client:
        await check_is_superseded(client)


async def test_the_superseded_connection_is_also_found_by_a_former_session_id() -> None:
    async with Client() as first:
        pass
    async with Client(first.sid) as second:
        await send_control_message({"supersede": [["unknown", "x"], [first.sid, "elsewhere"]]})
        assert await second.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}


async def test_the_connections_that_continue_the_session_stay_open() -> None:
    async with Client() as first:
        pass
    async with Client(first.sid) as second:
        await send_control_message({"supersede": [[first.sid, second.sid]]})
        assert await second.quiet()
    async with Client(second.sid) as third:
        # The announcement of the second connection arrives late.
        await send_control_message({"supersede": [[first.sid, second.sid]]})
        assert await third.quiet()


async def test_a_client_that_reconnected_twice_with_the_same_id_keeps_its_last_connection() -> None:
    # The client did not receive the welcome of the second connection, whose announcement arrives last.
    async with Client() as former:
        pass
    async with Client(former.sid) as between, Client(former.sid) as client:
        await send_control_message({"supersede": [[former.sid, between.sid]]})
        assert await client.quiet()


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "open"])
@pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])
async def test_of_two_restores_at_the_same_time_the_later_one_stays(ended: bool, together: bool) -> None:
    async with Client() as former:
        await former.subscribe(ROOM)
        if ended:
            await former.communicator.disconnect()
        first, second = Client(former.sid), Client(former.sid)
        first_gate = Room.gate
        await first.communicator.connect()
        if not together:
            await until(lambda: Room.restores == 1)
            Room.gate = asyncio.Event()
        await second.communicator.connect()
        await until(lambda: Room.restores == 2)
        Room.gate.set()
        await run_event_loop()  # unless both restore together, the second client is now welcomed first
        first_gate.set()
        welcome = await second.receive()
        assert welcome["restored_ids"] == [ROOM]
        await second.send("history", ROOM, history={})
        assert (await second.receive())["type"] == "confirm_history"
        # Wait until this process has read its own announcement of the takeover.
        await until(lambda: not get_hub().control._unconfirmed and get_hub().control._announcing is None)
        await abroadcast("room", "hello")
        assert (await second.receive())["message"] == "hello"
        assert await second.quiet()
        output = await first.communicator.receive_output(5)
        while output["type"] == "websocket.send":
            output = await first.communicator.receive_output(5)
        assert output == {"type": "websocket.close", "code": 1000}
        for client in (first, second):
            await client.communicator.disconnect()


async def test_the_connection_that_was_announced_last_stays_open() -> None:
    async with Client() as first:
        pass
    sessions = get_engine().sessions
    record = await load_record(sessions, first.sid, {"user": ""})
    assert record is not None
    # The record says that the former connection may still be open in another process.
    await sessions.asave({first.sid: SessionRecord(record.identity, 0, {**record.data, "alive": True})})
    async with Client(first.sid) as second:
        assert second.welcome["restored"]
        # Another process announced its takeover before this process did.
        get_hub().control.receive(json.dumps({"supersede": [[first.sid, "elsewhere"]]}))
        assert await second.quiet()
        await until(lambda: not get_hub().control._unconfirmed)
        get_hub().control.receive(json.dumps({"supersede": [[first.sid, "elsewhere"]]}))
        assert await second.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}


async def test_a_connection_whose_own_session_was_restored_is_closed_before_its_own_takeover_is_announced() -> None:
    async with Client() as former:
        pass
    async with Client(former.sid) as client:
        get_hub().control.announce_takeover(former.sid, connection_of(client))
        # Another process restored the session after this client had been welcomed. The announcement of that restore
        # arrives before this process has read its own announcement.
        get_hub().control.receive(json.dumps({"supersede": [[client.sid, "elsewhere"]]}))
        assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}


async def test_the_former_session_can_be_restored_again_although_the_store_failed_during_the_takeover(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*args: Any) -> None:
        raise StoreError("down")

    monkeypatch.setattr(session_writer, "BACKGROUND_RETRY_DELAY", 0.001)
    sessions = get_engine().sessions
    async with Client() as former:
        with monkeypatch.context() as patch:
            patch.setattr(sessions, "asave", fail)
            async with Client(former.sid) as second:
                assert second.welcome["restored"]
        await until(lambda: not get_hub().sessions.is_pending(former.sid))
        record = await load_record(sessions, former.sid, {"user": ""})
        assert record is not None
        assert second.sid in record.data["sids"]


async def test_a_takeover_of_a_session_whose_connection_ended_properly_is_not_announced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    announced: list[Any] = []
    monkeypatch.setattr(control_bus.ControlBus, "announce_takeover", lambda *args: announced.append(args))
    async with Client() as first:
        pass
    async with Client(first.sid):
        pass
    assert announced == []


async def test_the_record_of_a_restored_session_says_that_its_connection_may_be_open() -> None:
    async with Client() as first:
        pass
    async with Client(first.sid):
        record = await load_record(get_engine().sessions, first.sid, {"user": ""})
        assert record is not None
        assert record.data["alive"]


async def test_takeovers_are_announced_together_and_retried_until_that_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = get_engine().streams
    append = streams.aappend
    attempts: list[Message] = []
    succeeded = asyncio.Event()

    async def fail_first(items: Sequence[tuple[str, Message]]) -> Any:
        attempts.append(items[0][1])
        if len(attempts) == 1:
            raise StoreError("down")
        succeeded.set()
        return await append(items)

    monkeypatch.setattr(streams, "aappend", fail_first)
    monkeypatch.setattr(control_bus, "BACKGROUND_RETRY_DELAY", 0.001)
    async with Client() as client:
        hub = get_hub()
        connection = connection_of(client)
        for number in range(3):
            hub.control.announce_takeover(f"sid{number}", connection)
        assert hub.control._unconfirmed == {client.sid}
        await asyncio.wait_for(succeeded.wait(), 5)
        await run_event_loop()
        assert json.loads(attempts[0].data) == {"supersede": [[f"sid{n}", client.sid] for n in range(3)]}
        assert attempts[0] == attempts[1], "the retry had another idempotency key"
        assert not hub.control._unconfirmed


async def test_a_takeover_that_cannot_be_announced_does_not_protect_from_later_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(items: Sequence[tuple[str, Message]]) -> Any:
        raise ValueError("unexpected")

    async with Client() as client:
        hub = get_hub()
        await run_event_loop()
        with monkeypatch.context() as patch:
            patch.setattr(get_engine().streams, "aappend", fail)
            hub.control.announce_takeover("former", connection_of(client))
            await until(lambda: "could not be announced" in caplog.text)
        await check_is_superseded(client)


async def test_a_takeover_whose_announcement_was_lost_does_not_protect_from_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lose(items: Sequence[tuple[str, Message]]) -> None:
        lost.set()

    lost = asyncio.Event()
    await send_control_message({"other": 1})
    async with Client() as client:
        hub = get_hub()
        await run_event_loop()
        with monkeypatch.context() as patch:
            patch.setattr(get_engine().streams, "aappend", lose)
            hub.control.announce_takeover("former", connection_of(client))
            await lost.wait()
        await get_engine().streams.aforget(CONTROL_STREAM)
        await run_event_loop()
        await check_is_superseded(client)


async def test_nothing_is_kept_of_a_connection_that_ends_before_its_takeover_is_announced() -> None:
    async with Client():  # keeps the control bus in use
        hub = get_hub()
        async with Client() as client:
            hub.control.announce_takeover("former", connection_of(client))
        assert not hub.control._unconfirmed
