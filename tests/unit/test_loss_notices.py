"""The notice of a loss is repeated at each restore until the client has shown that it read the notice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable import Channel
from reliable_cable.broadcasting import abroadcast, aforget
from reliable_cable.consumer import get_hub
from reliable_cable.exceptions import StoreError
from reliable_cable.protocol import messages
from reliable_cable.stores.streams.memory import MemoryStreamStore

from .wire import Client, connection_of, identifier, registered, run_event_loop


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        self.stream_from("room")


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _room(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "HISTORY_SIZE": 2}
    monkeypatch.setattr("reliable_cable.stores.streams.memory.YOUNG_TIME", 0.0)
    with registered(Room=Room):
        yield


async def received(client: Client) -> list[Any]:
    """Return the frames received so far, as offsets or types."""
    frames = []
    await run_event_loop()
    await client.send_text('{"command":"ping"}')
    while (frame := await client.receive()) != {"type": "pong"}:
        frames.append(frame.get("offset") or frame["type"])
    return frames


def ping(client: Client) -> None:
    """Let the server ping a client."""
    connection_of(client).ping(messages.ping(1))


async def pong(client: Client) -> None:
    """Let a client answer a ping."""
    await client.send_text('{"command":"pong"}')
    await run_event_loop()


async def restored(sid: str) -> tuple[str, list[Any]]:
    """Restore a session for a client that names no position. Return the new session id and what the client receives."""
    async with Client(sid) as client:
        assert client.welcome["restored_ids"] == [ROOM]
        await client.send("history", ROOM, history={"since": 1, "streams": {}})
        return client.sid, await received(client)


async def session_with_a_loss() -> str:
    """Return the id of a session whose stream has lost all its messages."""
    await abroadcast("room", 1)
    async with Client() as client:
        await client.subscribe(ROOM)
    await aforget("room")
    return client.sid


class TestRequestsByTime:
    async def test_a_request_that_was_rejected_is_rejected_after_a_restore(self) -> None:
        for number in range(1, 4):
            await abroadcast("room", number)
        async with Client() as client:
            await client.subscribe(ROOM, history={"since": 1})
            # The connection breaks before the client reads the answer.
        sid, frames = await restored(client.sid)
        assert frames == ["reject_history"]
        assert (await restored(sid))[1] == ["reject_history"]

    async def test_a_client_that_has_received_a_later_message_continues_there(self) -> None:
        for number in range(1, 4):
            await abroadcast("room", number)
        async with Client() as client:
            await client.subscribe(ROOM, history={"since": 1})
            assert await received(client) == ["reject_history"]
            await abroadcast("room", 4)
            frame = await client.receive()
        await abroadcast("room", 5)
        async with Client(client.sid) as client:
            position = {"epoch": frame["epoch"], "offset": frame["offset"]}
            await client.send("history", ROOM, history={"since": 1, "streams": {"room": position}})
            assert await received(client) == [5, "confirm_history"]

    @pytest.mark.parametrize("since", [1, None], ids=["before the epoch", "during the epoch"])
    async def test_an_epoch_that_ends_while_a_time_is_looked_up_is_not_complete(
        self, since: float | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look_up = MemoryStreamStore.aoffset_since

        async def end_the_epoch(store: MemoryStreamStore, stream: str, since: float) -> int | None:
            offset = await look_up(store, stream, since)
            assert offset == (0 if since == 1 else 1)
            await aforget(stream)
            for number in (2, 3):
                await abroadcast(stream, number)
            return offset

        await abroadcast("room", 1)
        monkeypatch.setattr(MemoryStreamStore, "aoffset_since", end_the_epoch)
        async with Client() as client:
            await client.subscribe(ROOM, history={"since": since or time.time()})
            assert await received(client) == ["reject_history"]

    async def test_an_epoch_that_ends_before_a_retry_is_not_complete(self, monkeypatch: pytest.MonkeyPatch) -> None:
        look_up, failures = MemoryStreamStore.aoffset_since, [StoreError("the first read fails")]

        async def end_the_epoch(store: MemoryStreamStore, stream: str, since: float) -> int | None:
            if failures:
                await aforget(stream)
                await abroadcast(stream, 3)
                await run_event_loop()  # the hub begins the new epoch
                raise failures.pop()
            return await look_up(store, stream, since)

        await abroadcast("room", 1)
        async with Client() as client:
            await client.subscribe(ROOM)
            await abroadcast("room", 2)
            assert await received(client) == [2]
            monkeypatch.setattr("reliable_cable.connection.replay.RETRY_DELAY", 0.0)
            monkeypatch.setattr(MemoryStreamStore, "aoffset_since", end_the_epoch)
            await client.send("history", ROOM, history={"since": 1, "streams": {}})
            assert (await client.receive())["type"] == "reject_history"
            assert await received(client) == []


class TestStreamsWithoutMessages:
    @pytest.mark.parametrize(("after", "answer"), [("first", "confirm_history"), ("second", "reject_history")])
    async def test_a_failover_while_the_client_was_away_may_have_lost_messages(
        self, after: str, answer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lineage = "first"

        async def current(store: MemoryStreamStore, *, durable: bool = False) -> str:
            return lineage

        monkeypatch.setattr(MemoryStreamStore, "alineage", current)
        async with Client() as client:
            await client.subscribe(ROOM)
        lineage = after
        assert (await restored(client.sid))[1] == [answer]


class TestEpochsThatEndUnnoticed:
    async def test_the_request_of_one_client_lets_the_hub_notice_the_end(self) -> None:
        async with Client() as other:
            await other.subscribe(ROOM)
            await abroadcast("room", 1)
            frame = await other.receive()
            # The store fails over to a server without messages, and announces nothing.
            store = get_hub().engine.streams
            assert isinstance(store, MemoryStreamStore)
            del store._streams["room"]
            async with Client() as client:
                position = {"epoch": frame["epoch"], "offset": frame["offset"]}
                await client.subscribe(ROOM, history={"streams": {"room": position}})
                # The request is rejected, and then the hub tells all clients of the loss.
                assert await received(client) == ["reject_history", "reject_history"]
            assert await received(other) == ["reject_history"]


class TestReading:
    async def test_a_client_that_answers_no_ping_is_told_at_each_restore(self) -> None:
        sid = await session_with_a_loss()
        for _ in range(3):
            sid, frames = await restored(sid)
            assert frames == ["reject_history"]

    async def test_a_client_that_has_answered_a_later_ping_is_not_told_again(self) -> None:
        sid = await session_with_a_loss()
        async with Client(sid) as client:
            ping(client)
            await client.send("history", ROOM, history={})
            assert await received(client) == ["ping", "reject_history"]
            ping(client)
            await pong(client)
            await pong(client)
        assert (await restored(client.sid))[1] == ["confirm_history"]

    async def test_the_answer_to_an_earlier_ping_proves_nothing(self) -> None:
        sid = await session_with_a_loss()
        async with Client(sid) as client:
            ping(client)
            await client.send("history", ROOM, history={})
            await run_event_loop()
            ping(client)
            await pong(client)
        assert (await restored(client.sid))[1] == ["reject_history"]

    async def test_messages_after_the_notice_are_sent_to_a_client_that_has_none_of_them(self) -> None:
        sid = await session_with_a_loss()
        async with Client(sid) as client:
            await client.send("history", ROOM, history={})
            await run_event_loop()
            ping(client)
            await abroadcast("room", 1)
            await pong(client)
        await abroadcast("room", 2)
        assert (await restored(client.sid))[1] == [1, 2, "confirm_history"]

    async def test_a_client_that_has_read_of_a_loss_while_it_was_live_is_not_told_again(self) -> None:
        await abroadcast("room", 1)
        async with Client() as client:
            await client.subscribe(ROOM)
            await aforget("room")
            assert await received(client) == ["reject_history"]
            ping(client)
            await pong(client)
        assert (await restored(client.sid))[1] == ["confirm_history"]
