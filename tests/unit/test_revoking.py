"""`revoke` ends subscriptions that are active, pending or in sessions. test_disconnecting.py tests its arguments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest

from reliable_cable import CableConsumer, Channel, abroadcast, action, arevoke
from reliable_cable.channel import registry
from reliable_cable.consumer import get_hub
from reliable_cable.identity import STREAM
from reliable_cable.presence import presence_for
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.sessions.base import CLOCK_MARGIN
from tests.support.records import load_record

from .test_control_bus import StoreTime, ann
from .wire import (
    BASE,
    EXTENDED,
    Client,
    connection_of,
    identifier,
    leave_session,
    run_event_loop,
    send_control_message,
    until,
)


class Room(Channel, abstract=True):
    """Starts the streams that its params name, unless `allowed` is False."""

    allowed = True
    #: The names of the handlers that were called, in all rooms.
    events: list[str] = []  # noqa: RUF012 - each test gets a new one
    #: The handlers `subscribed` and `open_later` wait for this.
    gate = asyncio.Event()

    async def subscribed(self) -> None:
        self.events.append("subscribed")
        allowed = Room.allowed
        await self.gate.wait()
        if not allowed:
            return self.reject()
        for stream in self.params["streams"]:
            self.stream_from(stream)
        if "member" in self.params:
            self.presence.join(self.params["member"])
        if "greeting" in self.params:
            self.transmit(self.params["greeting"])

    async def unsubscribed(self) -> None:
        self.events.append("unsubscribed")

    @action
    async def open_later(self, data: dict[str, Any]) -> None:
        self.events.append("open_later")
        await self.gate.wait()
        self.stream_from(data["stream"])
        self.presence.join("late")
        self.transmit({"opened": data["stream"]})


class Lounge(Room, abstract=True):
    pass


def room(*streams: str, channel: str = "Room", **params: Any) -> str:
    """Return the identifier of a subscription to streams."""
    return identifier(channel, streams=streams, **params)


@pytest.fixture(autouse=True)
async def _rooms(settings: Any) -> AsyncIterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    registry.update(Room=[Room], Lounge=[Lounge])
    Room.allowed, Room.events, Room.gate = True, [], asyncio.Event()
    Room.gate.set()
    yield
    Room.gate.set()
    del registry["Room"], registry["Lounge"]


def revocation(identifier: str, reason: str = "revoked") -> dict[str, Any]:
    """Return the frame that tells a client of a revocation."""
    return {"identifier": identifier, "message": {"type": "revoked", "reason": reason}}


async def expect_close(client: Client) -> None:
    """Expect that the connection is closed without a `disconnect` frame, so that the client keeps its session."""
    assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}


async def check_delivers(client: Client, identifier: str, stream: str) -> None:
    """Check that a subscription receives the broadcasts of a stream."""
    await abroadcast(stream, {"to": stream})
    frame = await client.receive()
    assert (frame["identifier"], frame["message"]) == (identifier, {"to": stream})


async def resume(client: Client, identifier: str) -> None:
    """Request the history of a restored subscription."""
    await client.send("history", identifier)
    assert (await client.receive())["type"] == "confirm_history"


class TestContext:
    """A revocation does not arrive in the context of its connection, but handlers must run in that context."""

    async def test_handlers_after_a_revocation_have_the_context_of_their_connection(self) -> None:
        tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
        seen: list[tuple[str, str]] = []

        class Named(Room, abstract=True):
            async def unsubscribed(self) -> None:
                seen.append(("unsubscribed", tenant.get()))

            @action
            async def speak(self) -> None:
                seen.append(("speak", tenant.get()))
                self.transmit({"spoken": 1})

        class Tenants(CableConsumer):
            async def connect(self) -> None:
                tenant.set(self.user)

        registry["Room"] = [Named]
        async with Client(consumer=Tenants, scope={"user": "bob"}), ann(consumer=Tenants, protocol=BASE) as client:
            for each in (room("a"), room("b")):
                await client.subscribe(each)
            await arevoke(user="ann", stream="a")
            assert await client.receive_many(2)
            await until(lambda: seen)
            await client.perform(room("b"), "speak")
            assert (await client.receive())["message"] == {"spoken": 1}
            assert seen == [("unsubscribed", "ann"), ("speak", "ann")]


class TestConnectedClients:
    async def test_an_extended_client_is_told_and_restores_its_other_subscriptions(self) -> None:
        async with ann() as client:
            for each in (room("a"), room("b")):
                await client.subscribe(each)
            await arevoke(user="ann", stream="a", reason="removed from the room")
            assert await client.receive() == revocation(room("a"), "removed from the room")
            await expect_close(client)
        async with ann(sid=client.sid) as returned:
            assert returned.welcome["restored_ids"] == [room("b")]
            Room.allowed = False
            await returned.send("subscribe", room("a"))
            assert await returned.receive() == {"type": "reject_subscription", "identifier": room("a")}
            await resume(returned, room("b"))
            await abroadcast("a", {"to": "a"})
            await check_delivers(returned, room("b"), "b")

    async def test_a_base_client_is_rejected_and_stays_connected(self) -> None:
        async with ann(protocol=BASE) as client:
            for each in (room("a"), room("b")):
                await client.subscribe(each)
            await arevoke(user="ann", stream="a", reason="removed from the room")
            assert await client.receive_many(2) == [
                revocation(room("a"), "removed from the room"),
                {"type": "reject_subscription", "identifier": room("a")},
            ]
            await abroadcast("a", {"to": "a"})
            await check_delivers(client, room("b"), "b")

    async def test_a_base_client_that_may_have_subscribed_afterwards_reconnects(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store_time = StoreTime(monkeypatch)
        async with ann(protocol=BASE) as client:
            await client.subscribe(room("a"))
            at = store_time.now - CLOCK_MARGIN / 2
            await send_control_message({"revoke": {}, "at": at, "reconnect": True, "subscriptions": {STREAM: "a"}})
            assert await client.receive() == revocation(room("a"))
            assert await client.receive() == {"type": "disconnect", "reason": "server_restart", "reconnect": True}

    @pytest.mark.parametrize("protocol", [EXTENDED, BASE])
    async def test_only_matching_subscriptions_end(self, protocol: str) -> None:
        bob = {"user": "bob"}
        async with (
            ann(protocol=protocol) as revoked,
            Client(scope=bob, protocol=protocol) as other_user,
            ann(protocol=protocol) as other_channel,
        ):
            await revoked.subscribe(room("a"))
            await other_user.subscribe(room("a"))
            await other_channel.subscribe(room("a", channel="Lounge"))
            await arevoke(user="ann", channel=Room)
            assert await revoked.receive() == revocation(room("a"))
            await abroadcast("a", {"to": "a"})
            assert (await other_user.receive())["message"] == {"to": "a"}
            assert (await other_channel.receive())["message"] == {"to": "a"}
            assert await other_user.quiet()
            assert await other_channel.quiet()

    async def test_without_identifiers_everybody_is_meant(self) -> None:
        async with ann() as user, Client() as anonymous, Client() as other_stream:
            for client, stream in ((user, "a"), (anonymous, "a"), (other_stream, "b")):
                await client.subscribe(room(stream))
            await arevoke(stream="a")
            for client in (user, anonymous):
                assert await client.receive() == revocation(room("a"))
                await expect_close(client)
            await check_delivers(other_stream, room("b"), "b")

    async def test_a_subscription_that_was_made_afterwards_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store_time = StoreTime(monkeypatch)
        async with ann() as client:
            at = store_time.now
            store_time.now += CLOCK_MARGIN + 0.1
            await client.subscribe(room("a"))
            await send_control_message({"revoke": {}, "at": at, "reconnect": True, "subscriptions": {STREAM: "a"}})
            await check_delivers(client, room("a"), "a")

    async def test_nothing_is_delivered_after_the_revocation(self) -> None:
        async with ann() as client:
            await client.subscribe(room("a"))
            await arevoke(stream="a")
            for number in range(3):
                await abroadcast("a", {"n": number})
            assert await client.receive() == revocation(room("a"))
            await expect_close(client)

    async def test_a_replay_stops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        await abroadcast("a", {"n": 1})
        streams, reading, gate = get_engine().streams, asyncio.Event(), asyncio.Event()
        read = streams.aread

        async def delayed(stream: str, *args: Any, **options: Any) -> Any:
            if stream == "a":
                reading.set()
                await gate.wait()
            return await read(stream, *args, **options)

        monkeypatch.setattr(streams, "aread", delayed)
        async with ann() as client:
            await client.subscribe(room("a"), history={"since": 1, "streams": {}})
            await until(reading.is_set)
            await arevoke(stream="a")
            await run_event_loop()
            gate.set()
            assert await client.receive() == revocation(room("a"))
            await expect_close(client)

    @pytest.mark.parametrize("protocol", [EXTENDED, BASE])
    async def test_the_member_leaves_and_unsubscribed_is_called_once(self, protocol: str) -> None:
        async with ann(protocol=protocol) as client:
            await client.subscribe(room("a", member="ann"))
            await until(lambda: get_engine().presence.info("a", records=False).total == 1)
            await arevoke(stream="a")
            await until(lambda: Room.events == ["subscribed", "unsubscribed"])
            assert (await presence_for("a").ainfo()).total == 0
        assert Room.events == ["subscribed", "unsubscribed"]


class TestRunningHandlers:
    @pytest.mark.parametrize("protocol", [EXTENDED, BASE])
    async def test_the_reply_of_a_running_action_is_dropped(self, protocol: str) -> None:
        async with ann(protocol=protocol) as client:
            await client.subscribe(room("a"))
            Room.gate.clear()
            await client.perform(room("a"), "open_later", stream="b")
            await until(lambda: "open_later" in Room.events)
            await arevoke(stream="a")
            assert await client.receive() == revocation(room("a"))
            await abroadcast("a", {"to": "a"})
            await run_event_loop()
            Room.gate.set()
            await until(lambda: "unsubscribed" in Room.events)
            await abroadcast("b", {"to": "b"})
            if protocol == EXTENDED:
                await expect_close(client)
            else:
                assert (await client.receive())["type"] == "reject_subscription"
                await client.perform(room("a"), "open_later", stream="b")
                assert await client.communicator.receive_nothing()
        assert (await presence_for("a").ainfo()).total == 0

    async def test_a_stream_that_is_revoked_before_a_running_action_starts_it_ends(self) -> None:
        async with ann() as client:
            await client.subscribe(room("a"))
            Room.gate.clear()
            await client.perform(room("a"), "open_later", stream="b")
            await until(lambda: "open_later" in Room.events)
            await arevoke(stream="b")
            await run_event_loop()
            Room.gate.set()
            assert await client.receive() == revocation(room("a"))
            await expect_close(client)

    async def test_a_subscription_that_is_revoked_while_it_is_being_made_is_decided_again(self) -> None:
        async with ann() as client:
            Room.gate.clear()
            await client.send("subscribe", room("a"))
            await until(lambda: Room.events == ["subscribed"])
            Room.allowed = False
            await arevoke(stream="a")
            await run_event_loop()
            Room.gate.set()
            assert await client.receive() == {"type": "reject_subscription", "identifier": room("a")}
            assert Room.events == ["subscribed", "subscribed"]

    async def test_pending_commands_are_answered_before_the_close(self) -> None:
        # A client closes a channel for good if the connection ends while its `subscribe` is unanswered.
        async with ann() as client:
            await client.subscribe(room("a"))
            Room.gate.clear()
            await client.send("subscribe", room("b"))
            await until(lambda: Room.events == ["subscribed", "subscribed"])
            await arevoke(stream="a")
            assert await client.receive() == revocation(room("a"))
            Room.gate.set()
            assert await client.receive() == {"type": "confirm_subscription", "identifier": room("b")}
            await expect_close(client)

    async def test_a_handler_that_outlasts_the_close_does_not_keep_the_member(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("reliable_cable.connection.connection.CLOSE_TIMEOUT", 0.01)
        async with ann() as client:
            await client.subscribe(room("a", member="ann"))
            Room.gate.clear()
            await client.perform(room("a", member="ann"), "open_later", stream="b")
            await until(lambda: "open_later" in Room.events)
            await arevoke(stream="a")
            assert (await client.receive())["type"] == "presence"
            assert await client.receive() == revocation(room("a", member="ann"))
            await expect_close(client)
            Room.gate.set()
            await until(lambda: "unsubscribed" in Room.events)
            assert (await presence_for("a").ainfo()).total == 0


class TestSessions:
    async def test_a_client_that_is_away_loses_the_subscription(self) -> None:
        sid = await leave_session(ann(), room("a"), room("b"), room("a", "b"))
        await arevoke(user="ann", stream="a")
        async with ann(sid=sid) as client:
            assert client.welcome["restored_ids"] == [room("b")]

    @pytest.mark.parametrize("options", [{"user": "bob", "stream": "a"}, {"channel": Lounge}, {"stream": "b"}])
    async def test_other_subscriptions_of_a_client_that_is_away_stay(self, options: dict[str, Any]) -> None:
        sid = await leave_session(ann(), room("a"))
        await arevoke(**options)
        async with ann(sid=sid) as client:
            assert client.welcome["restored_ids"] == [room("a")]

    async def test_a_subscription_that_was_made_afterwards_is_restored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store_time = StoreTime(monkeypatch)
        await arevoke(stream="a")
        store_time.now += CLOCK_MARGIN + 0.1
        sid = await leave_session(ann(), room("a"))
        async with ann(sid=sid) as client:
            assert client.welcome["restored_ids"] == [room("a")]

    async def test_a_restored_subscription_is_as_old_as_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        store_time = StoreTime(monkeypatch)
        sid = await leave_session(ann(), room("a"))
        made_at, store_time.now = store_time.now, store_time.now + 100
        async with ann(sid=sid) as client:
            assert connection_of(client).subscriptions[room("a")].authorized == pytest.approx(made_at, abs=5)
            message = {"revoke": {}, "at": store_time.now - 50, "reconnect": True, "subscriptions": {STREAM: "a"}}
            await send_control_message(message)
            assert await client.receive() == revocation(room("a"))

    async def test_a_record_of_the_previous_release_loses_the_subscription(self) -> None:
        sid = await leave_session(ann(), room("a"), room("b"))
        sessions = get_engine().sessions
        record = await load_record(sessions, sid, {"user": "str:ann"})
        assert record is not None
        for item in record.data["subscriptions"]:
            del item["authorized"]
        await sessions.asave({sid: record})
        await arevoke(stream="a")
        async with ann(sid=sid) as client:
            assert client.welcome["restored_ids"] == [room("b")]

    async def test_a_revocation_during_the_restore_takes_effect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with ann() as former:
            for name in ("a", "b"):
                await former.send("subscribe", room(name, greeting=f"hello {name}"))
            await until(lambda: len(connection_of(former).subscriptions) == 2)
        sessions, loaded, gate = get_engine().sessions, asyncio.Event(), asyncio.Event()
        revoked = sessions.arevoked

        async def delayed(identities: Any) -> Any:
            times = await revoked(identities)
            loaded.set()
            await gate.wait()
            return times

        async with Client(scope={"user": "bob"}):  # so that this process already receives control messages
            monkeypatch.setattr(sessions, "arevoked", delayed)
            client = ann(sid=former.sid)
            connecting = asyncio.ensure_future(client.communicator.connect())
            await until(loaded.is_set)
            await arevoke(stream="a")
            await run_event_loop()
            gate.set()
            await connecting
            assert (await client.receive())["restored_ids"] == [room("b", greeting="hello b")]
            assert await client.receive() == {"identifier": room("b", greeting="hello b"), "message": "hello b"}
            await client.communicator.disconnect()

    async def test_subscriptions_that_were_revoked_while_control_messages_were_lost_end(self) -> None:
        async with ann() as client, ann() as other:
            await client.subscribe(room("a"))
            await other.subscribe(room("b"))
            await get_engine().sessions.arevoke({STREAM: "a"})
            get_hub().control.messages_lost()
            assert await client.receive() == revocation(room("a"))
            await expect_close(client)
            assert await other.quiet()
