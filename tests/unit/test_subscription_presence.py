"""A subscription shows the correct members, even after failures of stores, losses of data, and restores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from reliable_cable import Channel, StoreError, action
from reliable_cable.broadcasting import abroadcast
from reliable_cable.consumer import get_hub
from reliable_cable.hub import rosters, session_writer
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.presence.base import UNHEARD_TIME, Member, PresenceEvent, PresenceInfo
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.sessions.base import SessionRecord
from tests.stores.conftest import Clock

from .wire import Client, connection_of, identifier, registered, run_event_loop, until


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        self.stream_from("room")

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the name in the protocol
        return True

    @action
    async def join_late(self) -> None:
        self.connection.waiting.set()
        await self.connection.resumed.wait()
        self.presence.join("late")

    @action
    async def leave_and_join(self) -> None:
        self.stop_all_streams()
        self.presence.join("nowhere")

    @action
    async def move(self) -> None:
        self.stream_from("other", presence=True)


ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def _room(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    with registered(Room=Room):
        yield


def presence() -> MemoryPresenceStore:
    store = get_engine().presence
    assert isinstance(store, MemoryPresenceStore)
    return store


def brief(frame: dict[str, Any]) -> Any:
    """Return a presence event as its type and id, and any other frame as its type or message."""
    if frame.get("type") != "presence":
        return frame.get("type") or frame["message"]
    message = frame["message"]
    return (message["type"], message.get("id") or [record["id"] for record in message.get("records", ())])


async def received(client: Client) -> list[Any]:
    """Return the frames that the client has received, including the answers to its commands."""
    for _ in range(50):
        await asyncio.sleep(0)
    frames = []
    await client.send_text('{"command":"ping"}')
    while (frame := await client.receive()) != {"type": "pong"}:
        frames.append(brief(frame))
    return frames


class TestFailingStore:
    async def test_does_not_affect_the_subscription_and_receives_the_member_later(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(members: Sequence[Member]) -> list[PresenceEvent]:
            raise StoreError("down")

        async with Client() as client:
            with monkeypatch.context() as patch:
                patch.setattr(presence(), "ajoin_all", fail)
                await client.subscribe(ROOM, presence={"id": "ann", "info": {}})
                await abroadcast("room", "hi")
                assert await received(client) == ["hi"]
            await get_hub().presence.round()
            assert await received(client) == [("join", "ann")]

    async def test_makes_the_client_receive_an_error_and_adds_no_roster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(*args: Any, **options: Any) -> PresenceInfo:
            raise StoreError("down")

        async with Client() as client:
            await client.subscribe(ROOM)
            monkeypatch.setattr(presence(), "ainfo", fail)
            await client.send("presence", ROOM)
            assert await received(client) == [("error", [])]
            (subscription,) = connection_of(client).record().data["subscriptions"]
            assert subscription["watching"] is None


async def test_an_info_that_cannot_be_stored_is_not_in_the_session_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async def spoil(channel: Channel, id: str, info: Any) -> bool:  # noqa: A002 - the name in the protocol
        info["user"] = object()
        return True

    monkeypatch.setattr(Room, "authorize_presence", spoil)
    async with Client() as client:
        await client.subscribe(ROOM)
        await client.send("join", ROOM, presence={"id": "ann", "info": {}})
        assert await received(client) == []
        (subscription,) = connection_of(client).record().data["subscriptions"]
        assert subscription["member"] is None
        assert presence().info("room").total == 0


async def test_a_member_moves_with_the_presence_stream() -> None:
    async with Client() as client:
        await client.subscribe(ROOM, presence={"id": "ann", "info": {}})
        assert await received(client) == [("join", "ann")]
        await client.perform(ROOM, "move")
        assert await received(client) == [("join", "ann")]
        assert presence().info("room").total == 0
        assert presence().info("other").total == 1


class TestAfterARestore:
    async def watch_and_disconnect(self) -> str:
        """Return the session id of a client that was sent the members ann and bob, and has disconnected."""
        presence().join("room", "of ann", "ann")
        presence().join("room", "of bob", "bob")
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.send("presence", ROOM)
            assert await received(client) == [("info", ["ann", "bob"])]
            return client.sid

    async def test_the_list_is_corrected_by_joins_and_leaves(self) -> None:
        sid = await self.watch_and_disconnect()
        presence().leave("room", "of ann")
        presence().join("room", "of eve", "eve")
        async with Client(sid) as client:
            assert client.welcome["restored_ids"] == [ROOM]
            await client.send("history", ROOM, history={})
            assert await received(client) == ["confirm_history", ("leave", "ann"), ("join", "bob"), ("join", "eve")]

    async def test_the_record_is_stored_before_the_client_is_sent_a_list(self, monkeypatch: pytest.MonkeyPatch) -> None:
        presence().join("room", "of ann", "ann")
        async with Client() as client:
            await client.subscribe(ROOM)
            await get_hub().sessions.flush()
            # If the server is killed after it has sent the list, another server finds the record in the store.
            records: list[dict[str, Any]] = []
            stored, store = asyncio.Event(), get_engine().sessions.asave

            async def save_later(saved: Mapping[str, SessionRecord]) -> None:
                records.append({sid: record.data for sid, record in saved.items()})
                await stored.wait()
                await store(saved)

            monkeypatch.setattr(get_engine().sessions, "asave", save_later)
            await client.send("presence", ROOM)
            await until(lambda: records)
            (subscription,) = records[0][client.sid]["subscriptions"]
            assert subscription["watching"] is not None
            await run_event_loop()
            assert client.communicator.output_queue.empty(), "the store does not have the record yet"
            stored.set()
            assert brief(await client.receive()) == ("info", ["ann"])

    async def test_a_list_whose_record_cannot_be_saved_is_not_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        presence().join("room", "of ann", "ann")

        async def fail(records: Mapping[str, SessionRecord]) -> None:
            raise StoreError("down")

        async with Client() as client:
            await client.subscribe(ROOM)
            await get_hub().sessions.flush()
            monkeypatch.setattr(get_engine().sessions, "asave", fail)
            monkeypatch.setattr(session_writer, "SAVE_TIMEOUT", 0)
            await client.send("presence", ROOM)
            assert (await client.receive())["type"] == "disconnect"

    async def test_the_list_is_corrected_for_members_that_left_long_ago_by_the_store_clock(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Only the clock of the stores advances, as if the client had moved to a host whose clock is behind.
        clock = Clock()
        monkeypatch.setattr(presence(), "clock", clock)
        monkeypatch.setattr(get_engine().sessions, "clock", clock)
        sid = await self.watch_and_disconnect()
        clock.advance(1)
        presence().leave("room", "of ann")
        clock.advance(2 * UNHEARD_TIME)
        async with Client(sid) as client:
            await client.send("history", ROOM, history={})
            assert await received(client) == ["confirm_history", ("leave", "ann"), ("join", "bob")]

    @pytest.mark.parametrize("method", ["aleft_within", "ainfo"])
    async def test_events_that_arrive_while_the_list_is_corrected_are_not_missed(
        self, monkeypatch: pytest.MonkeyPatch, method: str
    ) -> None:
        sid = await self.watch_and_disconnect()
        real: Callable[..., Any] = getattr(presence(), method)

        async def with_events(*args: Any, **options: Any) -> Any:
            answer = await real(*args, **options)
            presence().leave("room", "of ann")
            presence().join("room", "of eve", "eve")
            for _ in range(5):
                await asyncio.sleep(0)
            return answer

        monkeypatch.setattr(presence(), method, with_events)
        async with Client(sid) as client:
            await client.send("history", ROOM, history={})
            frames = await received(client)
        members = {"ann", "bob"}
        for type_, id_ in frames[1:]:
            members = members | {id_} if type_ == "join" else members - {id_}
        assert members == {"bob", "eve"}

    async def test_a_loss_of_data_before_the_restore_makes_the_client_subscribe_again(self) -> None:
        sid = await self.watch_and_disconnect()
        presence()._incarnation = "another"
        async with Client(sid) as client:
            assert client.welcome["restored"] is True
            assert client.welcome["restored_ids"] == []

    async def test_a_loss_of_data_before_the_history_request_makes_the_client_reconnect_and_subscribe_again(
        self,
    ) -> None:
        sid = await self.watch_and_disconnect()
        client = Client(sid)
        async with client:
            assert client.welcome["restored_ids"] == [ROOM]
            presence()._incarnation = "another"
            await client.send("history", ROOM, history={})
            assert brief(await client.receive()) == "confirm_history"
            assert (await client.communicator.receive_output())["type"] == "websocket.close"
        async with Client(client.sid) as again:
            assert again.welcome["restored_ids"] == []

    async def test_a_list_that_was_just_corrected_after_a_loss_of_data_makes_the_client_subscribe_again(
        self, settings: Any
    ) -> None:
        # The connection may have been lost before the events that corrected the list reached the client.
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "PRESENCE_TTL": 0.1}
        presence().join("room", "of ann", "ann")
        async with Client() as client:
            await watch(client, ["ann"])
            await lose_members()
            assert brief(await client.receive()) == ("leave", "ann")
        async with Client(client.sid) as again:
            assert again.welcome["restored"] is True
            assert again.welcome["restored_ids"] == []

    async def test_a_list_that_is_corrected_after_the_end_of_the_connection_makes_the_client_subscribe_again(
        self, settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rosters, "UNHEARD_TIME", 0)
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "PRESENCE_TTL": 0.1}
        presence().join("room", "of ann", "ann")
        async with Client() as other, Client() as client:
            await watch(other, ["ann"])
            await watch(client, ["ann"])
            async with disconnected_during_an_action(client):
                await lose_members()
                assert brief(await other.receive()) == ("leave", "ann")
            async with Client(client.sid) as again:
                assert again.welcome["restored"] is True
                assert again.welcome["restored_ids"] == []

    async def test_members_that_leave_after_the_end_of_the_connection_leave_the_list(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rosters, "UNHEARD_TIME", 0)
        presence().join("room", "of ann", "ann")
        async with Client() as client:
            await watch(client, ["ann"])
            async with disconnected_during_an_action(client):
                presence().leave("room", "of ann")
            async with Client(client.sid) as again:
                await again.send("history", ROOM, history={})
                assert await received(again) == ["confirm_history", ("leave", "ann")]


async def watch(client: Client, members: list[str]) -> None:
    """Subscribe to the room, and request its members."""
    await client.subscribe(ROOM)
    await client.send("presence", ROOM)
    assert brief(await client.receive()) == ("info", members)


async def lose_members() -> None:
    """Delete the data of the presence store, and let the hub notice that."""
    presence()._incarnation = "another"
    presence()._streams.clear()
    presence()._sessions.clear()
    await get_hub().presence.round()


@asynccontextmanager
async def disconnected_during_an_action(client: Client) -> AsyncIterator[None]:
    """Disconnect a client whose action is running. The action ends after the block, before the record is written."""
    connection = connection_of(client)
    connection.consumer.waiting, connection.consumer.resumed = asyncio.Event(), asyncio.Event()
    await client.perform(ROOM, "join_late")
    await connection.consumer.waiting.wait()
    await client.communicator.send_input({"type": "websocket.disconnect", "code": 1006})
    await until(lambda: connection.closed)
    yield
    connection.consumer.resumed.set()
    await client.communicator.wait()


class TestJoinsWithoutAStream:
    async def test_an_action_that_stops_all_streams_cannot_join(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "leave_and_join")
            assert await client.quiet()
            assert connection_of(client).subscriptions[ROOM].record()["streams"], "its effects are dropped"
        assert "leave_and_join called presence.join(), but the subscription has no stream" in caplog.text

    async def test_a_join_after_the_subscription_was_revoked_is_no_error(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            connection = connection_of(client)
            connection.consumer.waiting, connection.consumer.resumed = asyncio.Event(), asyncio.Event()
            await client.perform(ROOM, "join_late")
            await connection.consumer.waiting.wait()
            connection.revoke([ROOM], "removed", connection.subscriptions[ROOM].authorized)
            connection.consumer.resumed.set()
            assert brief(await client.receive()) == {"type": "revoked", "reason": "removed"}
            await client.communicator.receive_output(5)  # the server closes the connection after the action
        assert [record for record in caplog.records if record.exc_info] == []
