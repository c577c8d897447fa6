"""What happens between two awaits: replays that overlap, stores that fail, handlers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable import Channel, StoreError, action, state
from reliable_cable.broadcasting import abroadcast
from reliable_cable.channel import registry
from reliable_cable.connection import commands as commands_module
from reliable_cable.connection import replay as replay_module
from reliable_cable.consumer import get_hub
from reliable_cable.hub import hub as hub_module
from reliable_cable.hub.repair import RETRY_DELAY
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.stores.engine import get_engine

from .wire import Client, connection_of, identifier


class Room(Channel, abstract=True):
    count: state[Any] = state(default=0)

    async def subscribed(self) -> None:
        if self.params.get("stop"):
            next(iter(()))
        self.stream_from("room")

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the wire's name
        return True

    @action
    async def more(self) -> None:
        self.stream_from("other")

    @action
    async def two(self) -> None:
        self.stream_from("a")
        self.stream_from("b")

    @action
    async def spoil(self) -> None:
        raise ValueError("handle_error will make it worse")

    @action
    async def cancelled(self) -> None:
        other = asyncio.ensure_future(asyncio.sleep(9))
        other.cancel()
        await other

    @action
    def stop(self) -> None:
        raise StopIteration

    @action
    async def hi(self) -> None:
        self.transmit("hi")

    async def handle_error(self, error: Exception, handler: str) -> None:
        if handler == "spoil":
            self.count = error


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    registry["Room"] = [Room]
    yield
    del registry["Room"]


class Gate:
    """Holds back a method of the stream store from now on, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.open = asyncio.Event()
        self.asked = asyncio.Event()
        store = get_engine().streams
        real = getattr(store, name)

        async def held(*args: Any, **options: Any) -> Any:
            self.asked.set()
            await self.open.wait()
            return await real(*args, **options)

        monkeypatch.setattr(store, name, held)


async def turns() -> None:
    """Let the loop run what can run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def rest(client: Client) -> list[Any]:
    """Return the frames that have come, as offsets, types or messages."""
    frames = []
    await turns()
    await client.send_text('{"command":"ping"}')
    while (frame := await client.receive()) != {"type": "pong"}:
        frames.append(frame.get("offset") or frame.get("type") or frame["message"])
    return frames


async def at(offset: int) -> dict[str, Any]:
    """Return the history request of a client that has seen up to an offset."""
    position = await get_engine().streams.aposition("room")
    return {"streams": {"room": {"epoch": position.epoch, "offset": offset}}}


class TestReplays:
    async def test_streams_that_an_action_adds_do_not_end_a_replay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(1, 6):
            await abroadcast("room", number)
        async with Client() as client:
            history = await at(2)
            gate = Gate(monkeypatch, "aread")
            await client.subscribe(ROOM, history=history)
            await gate.asked.wait()
            await client.perform(ROOM, "more")
            await turns()
            await abroadcast("room", 6)
            await turns()
            gate.open.set()
            got = await rest(client)
            await abroadcast("room", 7)
            got += await rest(client)
            assert [item for item in got if item != "confirm_history"] == [3, 4, 5, 6, 7]

    async def test_a_second_history_follows_the_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(1, 4):
            await abroadcast("room", number)
        async with Client() as client:
            await client.subscribe(ROOM)
            history = await at(2)
            gate = Gate(monkeypatch, "aread")
            await client.send("history", ROOM, history=history)
            await client.send("history", ROOM, history=history)
            await gate.asked.wait()
            gate.open.set()
            assert await rest(client) == [3, "confirm_history", 3, "confirm_history"]
            await abroadcast("room", 4)
            assert await rest(client) == [4]

    async def test_none_goes_on_after_unsubscribe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        await abroadcast("room", 1)
        async with Client() as client:
            gate = Gate(monkeypatch, "aoffset_since")
            await client.subscribe(ROOM, history={"since": 1}, presence={"id": "me"})
            await gate.asked.wait()
            await client.send("history", ROOM, history={"since": 1})
            await client.send("unsubscribe", ROOM)
            await turns()
            gate.open.set()
            assert await rest(client) == []
            assert (await get_engine().presence.ainfo("room")).total == 0

    async def test_a_leave_also_ends_a_join_that_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Client() as client:
            gate = Gate(monkeypatch, "aoffset_since")
            await client.subscribe(ROOM, history={"since": 1}, presence={"id": "me"})
            await gate.asked.wait()
            await client.send("leave", ROOM)
            await turns()
            gate.open.set()
            await rest(client)
            assert (await get_engine().presence.ainfo("room")).total == 0

    async def test_a_request_that_a_drop_overtook_is_made_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The session stood at the stream's end so far: a restore from there would leave a gap.
        await abroadcast("room", 1)
        async with Client() as client:
            gate = Gate(monkeypatch, "aoffset_since")
            await client.subscribe(ROOM, history={"since": 1})
            await gate.asked.wait()
        gate.open.set()
        async with Client(client.sid) as again:
            assert again.welcome["restored_ids"] == []
            await again.subscribe(ROOM, history={"since": 1})
            assert await rest(again) == [1, "confirm_history"]
        async with Client(again.sid) as last:
            assert last.welcome["restored_ids"] == [ROOM]

    async def test_a_restored_reader_goes_by_its_own_stream_id_only(self) -> None:
        other = identifier("Room", other=True)
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.subscribe(other)
            await abroadcast("room", 1)
            first, _ = await client.receive_many(2)
        async with Client(client.sid) as again:
            # The other's copy was lost with the connection: what the page knows is the first one's position.
            streams = {"room": {"epoch": first["epoch"], "offset": 1}}
            await again.send("history", other, history={"streams": streams})
            assert await rest(again) == [1, "confirm_history"]


class TestStoresThatFail:
    async def test_a_stream_that_cannot_be_opened_sends_the_client_away_so_that_it_asks_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(name: str) -> None:
            raise StoreError("down")

        async with Client() as client:
            with monkeypatch.context() as patch:
                patch.setattr(get_engine().streams, "aposition", fail)
                patch.setattr(hub_module, "OPEN_TIMEOUT", RETRY_DELAY / 2)
                patch.setattr(commands_module, "SUBSCRIBE_TIMEOUT", 0)
                await client.send("subscribe", ROOM)
                # Neither a rejection nor a `disconnect`: the session may be resumed.
                assert await client.communicator.receive_output(timeout=5) == {"type": "websocket.close", "code": 1000}
        async with Client(client.sid) as client:
            await client.subscribe(ROOM)
            await abroadcast("room", 1)
            assert await rest(client) == [1]

    async def test_subscribes_that_arrive_together_share_the_time_to_open_their_streams(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The client gives up each of them 10 seconds after it was sent.
        async def hang(name: str) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(commands_module, "SUBSCRIBE_TIMEOUT", 0.2)
        loop = asyncio.get_running_loop()
        async with Client() as client:
            monkeypatch.setattr(get_engine().streams, "aposition", hang)
            sent = loop.time()
            for number in range(4):
                await client.send("subscribe", identifier("Room", number=number))
            closed = await client.communicator.receive_output(timeout=hub_module.OPEN_TIMEOUT)
            assert closed == {"type": "websocket.close", "code": 1000}
        assert loop.time() - sent < hub_module.OPEN_TIMEOUT

    async def test_a_stream_that_cannot_be_opened_at_once_is_opened_when_it_can_be(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A rejection would close the channel for good on the client (2).
        real = get_engine().streams.aposition
        tries = 0

        async def fail_twice(name: str) -> Any:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise StoreError("down")
            return await real(name)

        monkeypatch.setattr(hub_module, "RETRY_DELAY", 0.001)
        async with Client() as client:
            await rest(client)
            monkeypatch.setattr(get_engine().streams, "aposition", fail_twice)
            await client.subscribe(ROOM)
            assert tries == 3
            await abroadcast("room", 1)
            assert await rest(client) == [1]

    async def test_nobody_tries_to_open_a_stream_for_those_who_have_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(name: str) -> Any:
            raise StoreError("down")

        monkeypatch.setattr(hub_module, "RETRY_DELAY", 0.001)
        async with Client() as client:
            await rest(client)
            monkeypatch.setattr(get_engine().streams, "aposition", fail)
            hub = get_hub()
            opening = asyncio.ensure_future(hub._open("room"))
            await turns()
            found = hub._streams["room"]
            opening.cancel()
            assert found.opening is not None
            with pytest.raises(StoreError):
                await asyncio.wait_for(found.opening, 5)
            assert "room" not in hub._streams

    async def test_in_an_action_the_streams_before_it_are_live(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = get_engine().streams.aposition

        async def fail_for_b(name: str) -> Any:
            if name == "b":
                raise StoreError("down")
            return await real(name)

        async with Client() as client:
            await client.subscribe(ROOM)
            monkeypatch.setattr(get_engine().streams, "aposition", fail_for_b)
            monkeypatch.setattr(hub_module, "OPEN_TIMEOUT", RETRY_DELAY / 2)
            await client.perform(ROOM, "two")
            await turns()
            await abroadcast("a", 1)
            assert await rest(client) == [1]

    async def test_presence_that_cannot_be_left_does_not_keep_the_subscription(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*args: Any) -> None:
            raise StoreError("down")

        async with Client() as client:
            await client.subscribe(ROOM, presence={"id": "1"})
            assert await rest(client) == ["presence"]
            monkeypatch.setattr(get_engine().presence, "aleave", fail)
            await client.send("unsubscribe", ROOM)
            await client.send("subscribe", ROOM)
            assert await rest(client) == ["confirm_subscription"]

    @pytest.mark.parametrize("name", ["aread", "aoffset_since"])
    async def test_history_that_cannot_be_read_is_not_lost_it_follows_when_it_can_be(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        real = getattr(get_engine().streams, name)
        tries = 0

        async def fail_twice(*args: Any, **options: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise StoreError("down")
            return await real(*args, **options)

        async with Client() as first:
            await first.subscribe(ROOM)
            await abroadcast("room", 1)
            await rest(first)
            monkeypatch.setattr(replay_module, "RETRY_DELAY", 0.001)
            monkeypatch.setattr(get_engine().streams, name, fail_twice)
            async with Client() as client:
                await client.subscribe(ROOM, history={"since": 1})
                while tries < 3:
                    await turns()
                assert await rest(client) == [1, "confirm_history"]

    async def test_history_that_cannot_be_understood_is_rejected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(*args: Any, **options: Any) -> None:
            raise LookupError("a defect")

        async with Client() as client:
            monkeypatch.setattr(get_engine().streams, "aoffset_since", fail)
            await client.subscribe(ROOM, history={"since": 1})
            assert await rest(client) == ["reject_history"]


class TestRestore:
    async def test_is_not_for_who_was_sent_away_not_even_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        held = asyncio.Event()
        sessions = get_engine().sessions
        delete = sessions.adelete

        async def slow(sids: Any) -> None:
            await held.wait()
            await delete(sids)

        monkeypatch.setattr(sessions, "adelete", slow)
        async with Client() as client:
            await client.subscribe(ROOM)
            await sessions.asave({client.sid: connection_of(client).record()})
            connection_of(client).close(DisconnectReason.INVALID_REQUEST)
            assert (await client.receive())["reason"] == "invalid_request"
            async with Client(client.sid) as again:
                assert "restored" not in again.welcome
            held.set()
        async with Client(client.sid) as again:
            assert "restored" not in again.welcome


class TestHandlersThatMisbehave:
    @pytest.mark.parametrize("name", ["cancelled", "spoil", "stop"])
    async def test_the_connection_goes_on_and_leaves_nothing_behind(self, name: str) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, name)
            await client.perform(ROOM, "hi")
            assert (await client.receive())["message"] == "hi"
            hub = get_hub()
        assert not hub.connections
        assert not hub._streams

    async def test_a_subscribe_is_always_answered(self) -> None:
        async with Client() as client:
            await client.send("subscribe", identifier("Room", stop=1))
            assert (await client.receive())["type"] == "reject_subscription"

    async def test_a_huge_since_is_no_since(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.send("history", ROOM, history={"since": 10**400})
            assert (await client.receive())["type"] == "confirm_history"
