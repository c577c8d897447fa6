"""One connection, end to end, without a server: order, restore, limits, errors. The wire is in tests/conformance."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from reliable_cable import CableConsumer, Channel, action, state
from reliable_cable.broadcasting import abroadcast
from reliable_cable.channel import registry
from reliable_cable.consumer import get_hub

from .wire import BASE, Client, identifier

calls: list[tuple[str, ...]] = []


@pytest.fixture(autouse=True)
def _memory(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "MAX_SUBSCRIPTIONS": 5, "PUBLIC_STREAMS": True}
    calls.clear()
    known = {name: list(classes) for name, classes in registry.items()}
    yield
    registry.clear()
    registry.update(known)


class Room(Channel, abstract=True):
    count = state(default=0)

    def before_subscribe(self) -> bool:
        return self.params.get("forbidden") is None

    def subscribed(self) -> None:
        calls.append(("subscribed", self.identifier))
        if self.params.get("reject"):
            self.transmit({"why": "full"})
            return self.reject()
        if self.params.get("raise"):
            raise LookupError("no such room")
        self.transmit({"hello": True})
        self.stream_from(self.params.get("stream", "room"), whisper=True)

    def unsubscribed(self) -> None:
        calls.append(("unsubscribed", self.identifier))

    def resubscribed(self) -> None:
        calls.append(("resubscribed", self.identifier))
        if self.params.get("once"):
            self.reject()

    def before_action(self, action: str, data: Any) -> bool:
        return data.get("please", True) is not False

    def handle_error(self, error: Exception, handler: str) -> None:
        self.transmit({"error": type(error).__name__, "in": handler})

    @action
    async def increase(self, data: dict[str, Any]) -> None:
        self.count += 1
        self.transmit({"count": self.count})

    @action
    def fail(self) -> None:
        self.count = 99
        self.transmit({"never": "sent"})
        raise ValueError("no")

    @action
    def receive(self, data: dict[str, Any]) -> None:
        self.transmit({"received": data})

    @action
    def leave_stream(self) -> None:
        self.stop_all_streams()

    @action
    def thread(self) -> None:
        self.transmit({"thread": threading.current_thread().name})


@pytest.fixture(autouse=True)
def _room(_memory: None) -> None:
    registry["Room"] = [Room]


ROOM = identifier("Room")


class TestSubscribe:
    async def test_transmissions_confirmation_history_acknowledgement_live(self) -> None:
        await abroadcast("room", 1)
        async with Client() as client:
            await client.send("subscribe", ROOM, history={"since": 1})
            frames = await client.receive_many(4)
            assert [frame.get("type") or frame["message"] for frame in frames] == [
                {"hello": True},
                "confirm_subscription",
                1,
                "confirm_history",
            ]
            await abroadcast("room", 2)
            assert (await client.receive())["offset"] == 2

    @pytest.mark.parametrize("params", [{"forbidden": 1}, {"raise": 1}])
    async def test_a_check_that_says_no_or_an_exception_rejects(
        self, params: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            await client.send("subscribe", identifier("Room", **params))
            frames = [await client.receive()]
            if "raise" in params:
                assert frames[0]["message"] == {"error": "LookupError", "in": "subscribed"}
                assert "no such room" in caplog.text
                frames.append(await client.receive())
            assert frames[-1] == {"type": "reject_subscription", "identifier": identifier("Room", **params)}
            assert await client.quiet()

    async def test_a_rejection_follows_what_was_transmitted(self) -> None:
        async with Client() as client:
            await client.send("subscribe", identifier("Room", reject=1))
            assert (await client.receive())["message"] == {"why": "full"}
            assert (await client.receive())["type"] == "reject_subscription"

    async def test_a_repeated_subscribe_runs_and_is_answered_once(self) -> None:
        async with Client() as client:
            for _ in range(3):
                await client.send("subscribe", ROOM)
            assert [frame.get("type") for frame in await client.receive_many(2)] == [None, "confirm_subscription"]
            await client.send("subscribe", ROOM)
            assert await client.quiet()
            assert calls == [("subscribed", ROOM)]

    async def test_subscribe_unsubscribe_subscribe_runs_twice(self) -> None:
        async with Client() as client:
            await client.send("subscribe", ROOM)
            await client.send("unsubscribe", ROOM)
            await client.send("subscribe", ROOM)
            types = [frame.get("type") for frame in await client.receive_many(4)]
            assert types == [None, "confirm_subscription"] * 2
        assert [call[0] for call in calls] == ["subscribed", "unsubscribed", "subscribed", "unsubscribed"]

    async def test_their_number_is_limited(self) -> None:
        async with Client() as client:
            for number in range(5):
                await client.subscribe(identifier("Room", n=number))
            await client.send("subscribe", identifier("Room", n=6))
            assert (await client.receive())["type"] == "reject_subscription"

    async def test_stopped_streams_are_silent(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "leave_stream")
            await client.perform(ROOM, "thread")
            await client.receive()
            await abroadcast("room", 1)
            assert await client.quiet()


class TestActions:
    async def test_an_exception_drops_what_was_recorded_and_breaks_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "fail")
            await client.perform(ROOM, "increase")
            assert [frame["message"] for frame in await client.receive_many(2)] == [
                {"error": "ValueError", "in": "fail"},
                {"count": 1},
            ]
            assert "Traceback" in caplog.text

    async def test_a_check_that_says_no_ignores_the_call(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "increase", please=False)
            await client.perform(ROOM, "increase")
            assert (await client.receive())["message"] == {"count": 1}

    async def test_sync_handlers_run_in_the_pool(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "thread")
            assert (await client.receive())["message"]["thread"].startswith("cable-handler")

    async def test_data_without_an_action_is_for_receive(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.send("message", ROOM, data='{"text":"x"}')
            assert (await client.receive())["message"] == {"received": {"text": "x"}}

    async def test_unknown_ones_are_bad_frames(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "subscribed")
            await client.perform(ROOM, "increase")
            assert (await client.receive())["message"] == {"count": 1}
        assert "has no action 'subscribed'; it has fail, increase" in caplog.text


class TestBadFrames:
    async def test_are_survived_up_to_a_limit(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL, "reliable_cable")
        async with Client() as client:
            for _ in range(20):
                await client.send_text("{")
            assert await client.quiet()
            await client.send_text("{")
            assert await client.receive() == {"type": "disconnect", "reason": "invalid_request", "reconnect": False}
            assert (await client.communicator.receive_output(5))["type"] == "websocket.close"


class TestRestore:
    async def test_gives_back_subscriptions_state_and_what_was_missed(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "increase")
            await client.receive()
            await abroadcast("room", 1)
            position = await client.receive()
        await abroadcast("room", 2)
        async with Client(client.sid) as again:
            assert again.welcome["restored_ids"] == [ROOM]
            assert again.sid != client.sid
            await abroadcast("room", 3)
            assert await again.quiet()
            streams = {"room": {"epoch": position["epoch"], "offset": position["offset"]}}
            await again.send("history", ROOM, history={"streams": streams, "since": 1})
            frames = await again.receive_many(3)
            assert [frame.get("type") or frame["message"] for frame in frames] == [2, 3, "confirm_history"]
            await again.perform(ROOM, "increase")
            assert (await again.receive())["message"] == {"count": 2}
        assert [call[0] for call in calls] == ["subscribed", "unsubscribed", "resubscribed", "unsubscribed"]

    async def test_a_client_that_received_nothing_gets_all_since_it_subscribed(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
        await abroadcast("room", 1)
        async with Client(client.sid) as again:
            await again.send("history", ROOM, history={"since": 4_000_000_000, "streams": {}})
            assert [frame.get("message") for frame in await again.receive_many(2)] == [1, None]

    async def test_a_channel_that_rejects_there_is_not_restored(self) -> None:
        once = identifier("Room", once=1)
        async with Client() as client:
            await client.subscribe(once)
            await client.subscribe(ROOM)
        async with Client(client.sid) as again:
            assert again.welcome["restored_ids"] == [ROOM]
            await abroadcast("room", 1)
            assert await again.quiet()

    async def test_takes_over_a_connection_that_is_still_there(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            async with Client(client.sid) as again:
                assert again.welcome["restored_ids"] == [ROOM]
                await again.send("history", ROOM)
                assert (await again.receive())["type"] == "confirm_history"
                await abroadcast("room", 1)
                assert (await again.receive())["message"] == 1
                assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}

    async def test_is_for_the_same_user_only(self) -> None:
        async with Client(scope={"user": "ada"}) as client:
            await client.subscribe(ROOM)
        async with Client(client.sid, scope={"user": "bob"}) as other:
            assert "restored" not in other.welcome
        async with Client(client.sid, scope={"user": "ada"}) as again:
            assert again.welcome["restored"]

    async def test_without_the_history_request_the_connection_is_closed_in_silence(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("reliable_cable.connection.lifecycle.HISTORY_TIMEOUT", 0.01)
        async with Client() as client:
            await client.subscribe(ROOM)
        async with Client(client.sid) as again:
            assert await again.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}

    async def test_others_do_not_get_their_own_message_back_after_it(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await abroadcast("room", 1)
            position = await client.receive()
            await abroadcast("room", 2, exclude_socket=client.sid)
            await abroadcast("room", 3)
            assert (await client.receive())["message"] == 3
        async with Client(client.sid) as again:
            streams = {"room": {"epoch": position["epoch"], "offset": 1}}
            await again.send("history", ROOM, history={"streams": streams})
            assert [frame.get("message") for frame in await again.receive_many(2)] == [3, None]

    async def test_base_clients_have_none_though_they_send_the_id(self) -> None:
        async with Client(protocol=BASE) as client:
            assert set(client.welcome) == {"type", "sid"}
            await client.subscribe(ROOM)
            await abroadcast("room", 1)
            assert await client.receive() == {"identifier": ROOM, "message": 1}
        async with Client(client.sid, protocol=BASE) as again:
            assert set(again.welcome) == {"type", "sid"}


class TestStreamIds:
    async def test_the_second_identifier_on_a_stream_has_its_own_and_keeps_it(self) -> None:
        second = identifier("Room", n=2)
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.subscribe(second)
            await abroadcast("room", 1)
            one, two = await client.receive_many(2)
            assert one["stream_id"] == "room"
            assert two["stream_id"] != "room"
        await abroadcast("room", 2)
        async with Client() as fresh:
            # The client is a new session, and subscribes in another order: the second keeps its own position.
            position = {two["stream_id"]: {"epoch": two["epoch"], "offset": 1}}
            await fresh.subscribe(second, history={"streams": position})
            replayed = await fresh.receive()
            assert (replayed["stream_id"], replayed["offset"]) == (two["stream_id"], 2)
            assert (await fresh.receive())["type"] == "confirm_history"
            await fresh.subscribe(ROOM)
            await abroadcast("room", 3)
            assert {frame["stream_id"] for frame in await fresh.receive_many(2)} == {"room", two["stream_id"]}


class TestPubSub:
    async def test_presence_and_whispers(self) -> None:
        public = identifier("$pubsub", stream_name="lobby")
        async with Client() as ada, Client() as bob:
            await ada.subscribe(public, presence={"id": 1, "info": "ada"})
            assert (await ada.receive())["message"] == {"type": "join", "id": "1", "info": "ada"}
            await bob.subscribe(public)
            await bob.send("join", public, presence={"id": "2"})
            join = {"type": "join", "id": "2", "info": None}
            assert (await ada.receive())["message"] == join
            assert (await bob.receive())["message"] == join
            await bob.send("presence", public)
            info = (await bob.receive())["message"]
            assert info["total"] == 2
            await bob.send("whisper", public, data={"typing": True})
            assert await ada.receive() == {"identifier": public, "message": {"typing": True}}
            assert await bob.quiet()
            await bob.send("unsubscribe", public)
            assert (await ada.receive())["message"] == {"type": "leave", "id": "2"}


class TestConsumer:
    async def test_refuses_what_it_does_not_speak(self) -> None:
        connected, _ = await Client(protocol="graphql-ws").communicator.connect()
        assert not connected

    async def test_unauthorized_connections_are_told(self) -> None:
        class Guarded(CableConsumer):
            def connect(self) -> None:
                self.reject_connection()

        client = Client(consumer=Guarded)
        await client.communicator.connect()
        assert await client.receive() == {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
        assert (await client.communicator.receive_output(5))["type"] == "websocket.close"

    async def test_channels_see_what_connect_has_set(self) -> None:
        seen: list[Any] = []

        class Who(Channel):
            def subscribed(self) -> None:
                seen.append((self.user, self.connection.tenant))

        class App(CableConsumer):
            identified_by = ("user", "tenant")

            async def connect(self) -> None:
                self.user = SimpleNamespace(name="ada")
                self.tenant = "t1"

        async with Client(consumer=App) as client:
            await client.subscribe(identifier("Who"))
        assert seen == [(SimpleNamespace(name="ada"), "t1")]

    async def test_nothing_is_left_of_a_connection_that_has_gone(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            hub = get_hub()
            assert hub.connections
        assert not hub.connections
        assert not hub._streams

    async def test_pings_come_at_the_asked_interval(self) -> None:
        async with Client(query="pi=1") as client:
            frame = await client.receive()
            assert frame["type"] == "ping"
            assert isinstance(frame["message"], int)
