"""A connection survives overlapping replays, failing stores and misbehaving handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable import Channel, StoreError, action, state
from reliable_cable.broadcasting import abroadcast
from reliable_cable.concurrency.retrying import RETRY_DELAY
from reliable_cable.connection import commands as commands_module
from reliable_cable.connection import replay as replay_module
from reliable_cable.consumer import get_hub
from reliable_cable.hub import control_bus
from reliable_cable.hub import hub as hub_module
from reliable_cable.protocol.constants import DisconnectReason
from reliable_cable.stores.engine import get_engine

from .wire import Client, connection_of, identifier, registered, run_event_loop


class Room(Channel, abstract=True):
    count: state[Any] = state(default=0)

    async def subscribed(self) -> None:
        if self.params.get("stop"):
            next(iter(()))
        await asyncio.sleep(self.params.get("seconds", 0))
        self.stream_from("room")

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the name in the protocol
        return True

    @action
    async def start_stream(self) -> None:
        self.stream_from("other")

    @action
    async def start_two_streams(self) -> None:
        self.stream_from("a")
        self.stream_from("b")

    @action
    async def fail_and_break_state(self) -> None:
        raise ValueError("handle_error will set a state that JSON cannot hold")

    @action
    async def raise_cancelled(self) -> None:
        task = asyncio.ensure_future(asyncio.sleep(9))
        task.cancel()
        await task

    @action
    def raise_stop_iteration(self) -> None:
        raise StopIteration

    @action
    async def hi(self) -> None:
        self.transmit("hi")

    async def handle_error(self, error: Exception, handler: str) -> None:
        if handler == "fail_and_break_state":
            self.count = error


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    with registered(Room=Room):
        yield


class Gate:
    """Makes a method of the stream store wait until the gate is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.open = asyncio.Event()
        self.called = asyncio.Event()
        store = get_engine().streams
        real = getattr(store, name)

        async def delayed(*args: Any, **options: Any) -> Any:
            self.called.set()
            await self.open.wait()
            return await real(*args, **options)

        monkeypatch.setattr(store, name, delayed)


async def received(client: Client) -> list[Any]:
    """Return the frames received so far, as offsets, types or messages."""
    frames = []
    await run_event_loop()
    await client.send_text('{"command":"ping"}')
    while (frame := await client.receive()) != {"type": "pong"}:
        frames.append(frame.get("offset") or frame.get("type") or frame["message"])
    return frames


async def history_from(offset: int) -> dict[str, Any]:
    """Return the history request of a client that has received the messages up to an offset."""
    position = await get_engine().streams.aposition("room")
    return {"streams": {"room": {"epoch": position.epoch, "offset": offset}}}


class TestReplays:
    async def test_a_stream_that_an_action_starts_does_not_end_a_replay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(1, 6):
            await abroadcast("room", number)
        async with Client() as client:
            history = await history_from(2)
            gate = Gate(monkeypatch, "aread")
            await client.subscribe(ROOM, history=history)
            await gate.called.wait()
            await client.perform(ROOM, "start_stream")
            await run_event_loop()
            await abroadcast("room", 6)
            await run_event_loop()
            gate.open.set()
            frames = await received(client)
            await abroadcast("room", 7)
            frames += await received(client)
            assert [item for item in frames if item != "confirm_history"] == [3, 4, 5, 6, 7]

    async def test_an_unsubscribe_ends_pending_replays_and_joins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        await abroadcast("room", 1)
        async with Client() as client:
            gate = Gate(monkeypatch, "aoffset_since")
            await client.subscribe(ROOM, history={"since": 1}, presence={"id": "me"})
            await gate.called.wait()
            await client.send("history", ROOM, history={"since": 1})
            await client.send("unsubscribe", ROOM)
            await run_event_loop()
            gate.open.set()
            assert await received(client) == []
            assert (await get_engine().presence.ainfo("room")).total == 0

    async def test_a_leave_ends_a_pending_join(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with Client() as client:
            gate = Gate(monkeypatch, "aoffset_since")
            await client.subscribe(ROOM, history={"since": 1}, presence={"id": "me"})
            await gate.called.wait()
            await client.send("leave", ROOM)
            await run_event_loop()
            gate.open.set()
            await received(client)
            assert (await get_engine().presence.ainfo("room")).total == 0

    async def test_a_session_whose_history_request_was_not_answered_is_not_restored(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The session record has the position at the end of the stream. If it were restored, the client would never
        # receive message 1.
        await abroadcast("room", 1)
        async with Client() as client:
            gate = Gate(monkeypatch, "aoffset_since")
            await client.subscribe(ROOM, history={"since": 1})
            await gate.called.wait()
        gate.open.set()
        async with Client(client.sid) as second:
            assert second.welcome["restored_ids"] == []
            await second.subscribe(ROOM, history={"since": 1})
            assert await received(second) == [1, "confirm_history"]
        async with Client(second.sid) as last:
            assert last.welcome["restored_ids"] == [ROOM]

    async def test_a_restored_subscription_ignores_positions_of_other_stream_ids(self) -> None:
        other = identifier("Room", other=True)
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.subscribe(other)
            await abroadcast("room", 1)
            first, _ = await client.receive_many(2)
        async with Client(client.sid) as restored:
            # The message of `other` was lost, so the client has only the position of the subscription `ROOM`.
            streams = {"room": {"epoch": first["epoch"], "offset": 1}}
            await restored.send("history", other, history={"streams": streams})
            assert await received(restored) == [1, "confirm_history"]


class TestFailingStores:
    async def test_a_client_whose_stream_cannot_be_opened_is_disconnected_so_that_it_subscribes_again(
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
                # Neither a rejection nor a `disconnect` is sent, so that the session can be restored.
                assert await client.communicator.receive_output(timeout=30) == {"type": "websocket.close", "code": 1000}
        async with Client(client.sid) as client:
            await client.subscribe(ROOM)
            await abroadcast("room", 1)
            assert await received(client) == [1]

    async def test_a_slow_handler_makes_no_opening_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands_module, "SUBSCRIBE_TIMEOUT", 0.01)
        async with Client() as client:
            await client.subscribe(identifier("Room", seconds=0.05))

    async def test_subscribes_sent_together_share_their_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # The client gives up each subscribe 10 seconds after it was sent.
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

    async def test_opening_a_stream_is_retried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # A rejection would close the channel in the client for good.
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
            await received(client)
            monkeypatch.setattr(get_engine().streams, "aposition", fail_twice)
            await client.subscribe(ROOM)
            assert tries == 3
            await abroadcast("room", 1)
            assert await received(client) == [1]

    async def test_opening_a_stream_is_not_retried_after_its_last_subscriber_has_gone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(name: str) -> Any:
            raise StoreError("down")

        monkeypatch.setattr(hub_module, "RETRY_DELAY", 0.001)
        async with Client() as client:
            await received(client)
            monkeypatch.setattr(get_engine().streams, "aposition", fail)
            hub = get_hub()
            opening = asyncio.ensure_future(hub._open("room"))
            await run_event_loop()
            stream = hub._streams["room"]
            opening.cancel()
            assert stream.opening is not None
            with pytest.raises(StoreError):
                await asyncio.wait_for(stream.opening, 5)
            assert "room" not in hub._streams

    async def test_an_action_whose_streams_cannot_be_opened_makes_the_client_subscribe_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = identifier("Room", other=True)
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.subscribe(other)
            hub = connection_of(client).hub
            open_stream = hub.subscribe

            async def fail(name: str, *args: Any, **options: Any) -> Any:
                if name == "b":
                    raise StoreError("as the test asked")
                return await open_stream(name, *args, **options)

            monkeypatch.setattr(hub, "subscribe", fail)
            await client.perform(ROOM, "start_two_streams")
            assert (await client.communicator.receive_output(5))["type"] == "websocket.close"
        async with Client(client.sid) as later:
            assert later.welcome["restored_ids"] == [other]
            assert not set(hub._streams) & {"a", "b"}

    async def test_an_unsubscribe_succeeds_although_presence_cannot_be_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*args: Any) -> None:
            raise StoreError("down")

        async with Client() as client:
            await client.subscribe(ROOM, presence={"id": "1"})
            assert await received(client) == ["presence"]
            monkeypatch.setattr(get_engine().presence, "aleave", fail)
            await client.send("unsubscribe", ROOM)
            await client.send("subscribe", ROOM)
            assert await received(client) == ["confirm_subscription"]

    @pytest.mark.parametrize("name", ["aread", "aoffset_since"])
    async def test_reading_history_is_retried(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
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
            await received(first)
            monkeypatch.setattr(replay_module, "RETRY_DELAY", 0.001)
            monkeypatch.setattr(get_engine().streams, name, fail_twice)
            async with Client() as client:
                await client.subscribe(ROOM, history={"since": 1})
                while tries < 3:
                    await run_event_loop()
                assert await received(client) == [1, "confirm_history"]

    async def test_a_history_request_that_fails_because_of_a_bug_is_rejected(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*args: Any, **options: Any) -> None:
            raise LookupError("a bug")

        async with Client() as client:
            monkeypatch.setattr(get_engine().streams, "aoffset_since", fail)
            await client.subscribe(ROOM, history={"since": 1})
            assert await received(client) == ["reject_history"]


class TestRestore:
    async def test_a_disconnected_session_is_not_restored_even_before_its_record_is_deleted(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        deletion = asyncio.Event()
        sessions = get_engine().sessions
        delete = sessions.adelete

        async def slow(sids: Any) -> None:
            await deletion.wait()
            await delete(sids)

        monkeypatch.setattr(sessions, "adelete", slow)
        async with Client() as client:
            await client.subscribe(ROOM)
            await sessions.asave({client.sid: connection_of(client).record()})
            connection_of(client).close(DisconnectReason.INVALID_REQUEST)
            assert (await client.receive())["reason"] == "invalid_request"
            async with Client(client.sid) as second:
                assert "restored" not in second.welcome
            deletion.set()
        async with Client(client.sid) as second:
            assert "restored" not in second.welcome

    async def test_is_not_undone_by_the_announcement_of_an_earlier_takeover(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_bus, "ANNOUNCE_DELAY", 0)
        async with Client() as client:
            await client.subscribe(ROOM)
        # The client does not receive the first welcomes, and names the same session again.
        for _ in range(3):
            async with Client(client.sid) as again:
                assert again.welcome["restored"]
            await run_event_loop()
        # The hub has no connection now. A new one makes the hub read all control messages again, which takes a while.
        gate = Gate(monkeypatch, "aread")
        async with Client(again.sid) as last:
            assert last.welcome["restored"]
            gate.open.set()
            await run_event_loop()
            assert await last.quiet()


class TestMisbehavingHandlers:
    @pytest.mark.parametrize("name", ["raise_cancelled", "fail_and_break_state", "raise_stop_iteration"])
    async def test_the_connection_continues_and_releases_everything_at_its_end(self, name: str) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, name)
            await client.perform(ROOM, "hi")
            assert (await client.receive())["message"] == "hi"
            hub = get_hub()
        assert not hub.connections
        assert not hub._streams

    async def test_a_subscribe_whose_handler_raises_stop_iteration_is_rejected(self) -> None:
        async with Client() as client:
            await client.send("subscribe", identifier("Room", stop=1))
            assert (await client.receive())["type"] == "reject_subscription"

    async def test_a_since_that_is_too_large_is_ignored(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.send("history", ROOM, history={"since": 10**400})
            assert (await client.receive())["type"] == "confirm_history"
