"""The server limits the lasting data of a client (identifiers, states, members, sessions) and held pages of history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable import Channel, abroadcast, action, aposition, state
from reliable_cable.channel import MAX_STATE_SIZE
from reliable_cable.connection.account import JOIN_BURST
from reliable_cable.connection.streams import STREAM_SIZE
from reliable_cable.protocol.constants import MAX_MEMBER_ID_LENGTH, MAX_MEMBER_INFO_SIZE
from reliable_cable.stores.engine import get_engine

from .wire import Client, connection_of, identifier, registered, run_event_loop


class Room(Channel, abstract=True):
    note = state(default="")

    async def subscribed(self) -> None:
        self.stream_from("room")

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the name in the protocol
        return True

    @action
    async def write(self, data: Any) -> None:
        self.note = "x" * data["size"]
        self.transmit({"size": data["size"]})

    @action
    async def follow(self, data: Any) -> None:
        for number in range(data["count"]):
            self.stream_from(f"room {number}")
        self.transmit({"followed": data["count"]})

    @action
    async def join(self, data: Any) -> None:
        self.presence.join("a" * data["id"], "i" * data["info"])

    async def handle_error(self, error: Exception, handler: str) -> None:
        self.transmit({"error": str(error)})


class Followed(Channel, abstract=True):
    async def subscribed(self) -> None:
        self.stream_from(f"followed {self.params['number']}")


ROOM = identifier("Room")
#: The maximum size, in bytes, of the data of all subscriptions of a connection.
LIMIT = 25_000
#: The part of `LIMIT`, in bytes, that the stream of one subscription uses.
STREAM = len("room") + STREAM_SIZE


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {
        "ENGINE": "memory",
        "PING_INTERVAL": 60,
        "MAX_PENDING_SIZE": 4 * LIMIT,
        "MAX_SUBSCRIPTIONS": 30,
        "MAX_IDENTIFIER_SIZE": 1000,
    }
    with registered(Room=Room, Followed=Followed):
        yield


def padded(number: int, size: int) -> str:
    """Return an identifier of the given size."""
    text = identifier("Room", number=number, pad="")
    return identifier("Room", number=number, pad="p" * (size - len(text)))


class TestIdentifiers:
    async def test_a_subscribe_with_a_longer_identifier_is_rejected(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.subscribe(padded(1, 1000))
            await client.send("subscribe", padded(1, 1001))
            assert await client.receive() == {"type": "reject_subscription", "identifier": padded(1, 1001)}
        assert "the identifier of 'subscribe' has 1001 bytes; 1000 are allowed" in caplog.text

    async def test_bytes_are_counted_and_not_characters(self) -> None:
        name = json.dumps({"channel": "Room", "pad": "é" * 490}, ensure_ascii=False)
        async with Client() as client:
            await client.send("subscribe", name)
            assert (await client.receive())["type"] == "reject_subscription"

    async def test_too_many_long_identifiers_are_rejected(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            for number in range(LIMIT // 1000):
                await client.subscribe(padded(number, 1000 - STREAM))
            await client.send("subscribe", ROOM)
            assert await client.receive() == {"type": "reject_subscription", "identifier": ROOM}
            await client.send("unsubscribe", padded(0, 1000 - STREAM))
            await client.subscribe(ROOM)
        assert "A subscription was rejected" in caplog.text


class TestMembers:
    @pytest.mark.parametrize(
        ("claim", "fault"),
        [
            ({"id": "a" * (MAX_MEMBER_ID_LENGTH + 1)}, "the id has 256 characters; 255 are allowed"),
            ({"id": "a\nb"}, "has a character that is not printable"),
            ({"id": "a", "info": "i" * MAX_MEMBER_INFO_SIZE}, "the info has 4098 bytes as JSON; 4096 are allowed"),
        ],
    )
    async def test_a_client_cannot_join_as_a_larger_member(
        self, claim: dict[str, Any], fault: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.send("join", ROOM, presence=claim)
            assert await client.quiet()
            await client.send("presence", ROOM)
            assert (await client.receive())["message"]["total"] == 0
        assert fault in caplog.text

    async def test_the_largest_member_can_join(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            member = {"id": "a" * MAX_MEMBER_ID_LENGTH, "info": "i" * (MAX_MEMBER_INFO_SIZE - 2)}
            await client.send("join", ROOM, presence=member)
            assert (await client.receive())["message"]["type"] == "join"

    async def test_a_handler_is_told_what_is_allowed(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "join", id=256, info=1)
            error = "Room: presence.join() is refused: the id has 256 characters; 255 are allowed."
            assert (await client.receive())["message"] == {"error": error}
            await client.perform(ROOM, "join", id=1, info=5000)
            assert "the info has 5002 bytes as JSON; 4096 are allowed" in (await client.receive())["message"]["error"]

    async def test_a_join_that_would_make_the_session_too_large_is_answered_with_an_error(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "write", size=12_000)
            await client.receive()
            other = identifier("Room", number=1)
            await client.subscribe(other)
            await client.perform(other, "write", size=12_000)
            await client.receive()
            await client.send("join", ROOM, presence={"id": "ann", "info": "i" * 2000})
            assert (await client.receive())["message"] == {"type": "error"}
            await client.send("presence", ROOM)
            assert (await client.receive())["message"]["total"] == 0


class TestJoins:
    async def test_a_client_that_joins_too_often_gets_errors(self, caplog: pytest.LogCaptureFixture) -> None:
        allowed = JOIN_BURST + 30
        async with Client() as client:
            await client.subscribe(ROOM)
            for number in range(allowed + 50):
                await client.send("join", ROOM, presence={"id": f"member {number}"})
            # Each join but the first also causes the `leave` of the client's previous member.
            events = [frame["message"]["type"] for frame in await client.receive_many(2 * allowed - 1 + 40)]
            assert events.count("join") >= allowed
            assert "error" in events
        assert "more often than 2 times a second" in caplog.text

    async def test_a_handler_may_join_as_often_as_it_likes(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            for number in range(1, 101):
                await client.perform(ROOM, "join", id=number, info=1)
            assert "error" not in [frame["message"]["type"] for frame in await client.receive_many(199)]

    async def test_a_list_that_has_changed_too_much_is_requested_anew(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.send("presence", ROOM)
            await client.receive()
        async with Client() as one, Client() as other, Client() as third:
            for each in (one, other, third):
                for number in range(5):
                    room = identifier("Room", number=number)
                    await each.subscribe(room)
                    await each.send("join", room, presence={"id": f"{each.sid} {number}", "info": "i" * 4000})
                await each.send("presence", ROOM)
            await run_event_loop()
            async with Client(client.sid) as later:
                assert later.welcome["restored_ids"] == [ROOM]
                await later.send("history", ROOM)
                while (await later.communicator.receive_output(5))["type"] != "websocket.close":
                    pass
            async with Client(later.sid) as last:
                assert last.welcome["restored_ids"] == []


async def test_streams_that_a_handler_starts_count_too(caplog: pytest.LogCaptureFixture) -> None:
    async with Client() as client:
        await client.subscribe(ROOM)
        await client.perform(ROOM, "follow", count=LIMIT // STREAM_SIZE)
        assert (await client.receive())["message"] == {"followed": LIMIT // STREAM_SIZE}
    assert "A session was forgotten" in caplog.text
    async with Client(client.sid) as later:
        assert "restored" not in later.welcome


class TestStates:
    async def test_a_handler_that_sets_a_larger_state_fails(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "write", size=MAX_STATE_SIZE)
            error = "Room: the state has 16396 bytes as JSON; 16384 are allowed."
            assert (await client.receive())["message"] == {"error": error}

    async def test_a_session_whose_states_are_too_large_together_is_not_restored(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            for number in range(2):
                await client.subscribe(identifier("Room", number=number))
                await client.perform(identifier("Room", number=number), "write", size=13_000)
                assert (await client.receive())["message"] == {"size": 13_000}
        assert "A session was forgotten" in caplog.text
        async with Client(client.sid) as later:
            assert "restored" not in later.welcome

    async def test_a_restored_session_has_the_same_limits(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "write", size=13_000)
            await client.receive()
        async with Client(client.sid) as later:
            assert later.welcome["restored_ids"] == [ROOM]
            assert connection_of(later).account.lasting > 13_000


async def test_what_has_ended_is_not_counted() -> None:
    async with Client() as client:
        connection = connection_of(client)
        await client.subscribe(ROOM)
        await client.perform(ROOM, "write", size=5000)
        await client.send("join", ROOM, presence={"id": "ann", "info": "i" * 1000})
        await client.receive_many(2)
        with_a_member = connection.account.lasting
        await client.send("leave", ROOM)
        await client.receive()
        await run_event_loop()
        assert with_a_member - 1100 < connection.account.lasting < with_a_member - 1000
        await client.send("join", ROOM, presence={"id": "ann"})
        await client.receive()
        await client.send("unsubscribe", ROOM)
        assert await client.quiet()
        await connection.commands.finished(10)
        assert connection.account.lasting == 0
    assert (connection.account.used, connection.account.lasting) == (0, 0)


class TestPagesOfHistory:
    #: How many streams the client subscribes to, how many messages each stream has, and the size of a message.
    STREAMS, MESSAGES, SIZE = 20, 4, 2000

    async def test_only_some_first_pages_are_held_while_another_subscription_is_reading(self) -> None:
        rooms = [identifier("Followed", number=number) for number in range(self.STREAMS)]
        epochs = []
        for number in range(self.STREAMS):
            for message in range(self.MESSAGES):
                await abroadcast(f"followed {number}", {"n": message, "text": "x" * self.SIZE})
            epochs.append((await aposition(f"followed {number}")).epoch)
        async with Client() as client:
            for room in rooms:
                await client.subscribe(room)
            outbox = connection_of(client).outbox
            async with outbox.reading:
                for number, (room, epoch) in enumerate(zip(rooms, epochs, strict=True)):
                    positions = {f"followed {number}": {"epoch": epoch, "offset": 0}}
                    await client.send("history", room, history={"streams": positions})
                await run_event_loop()
                page = self.MESSAGES * self.SIZE
                assert page < outbox.held < 2 * page
            received: dict[str, list[int]] = {room: [] for room in rooms}
            confirmed = 0
            while confirmed < self.STREAMS:
                frame = await client.receive()
                if "type" in frame:
                    assert frame["type"] == "confirm_history"
                    confirmed += 1
                else:
                    received[frame["identifier"]].append(frame["message"]["n"])
            assert all(numbers == list(range(self.MESSAGES)) for numbers in received.values())
            assert outbox.held == 0

    async def test_a_first_page_that_is_too_large_to_be_held_is_read_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads: list[str] = []
        read = get_engine().streams.aread

        async def counted(stream: str, **options: Any) -> Any:
            reads.append(stream)
            return await read(stream, **options)

        monkeypatch.setattr(get_engine().streams, "aread", counted)
        room = identifier("Followed", number=0)
        for message in range(self.MESSAGES):
            await abroadcast("followed 0", {"n": message, "text": "x" * 2 * self.SIZE})
        epoch = (await aposition("followed 0")).epoch
        async with Client() as client:
            await client.subscribe(room)
            assert not connection_of(client).outbox.can_hold_page(2 * self.SIZE * self.MESSAGES)
            reads.clear()
            await client.send("history", room, history={"streams": {"followed 0": {"epoch": epoch, "offset": 0}}})
            frames = await client.receive_many(self.MESSAGES + 1)
            assert [frame["message"]["n"] for frame in frames[:-1]] == list(range(self.MESSAGES))
            assert frames[-1]["type"] == "confirm_history"
            assert reads == ["followed 0"]
