"""A connection keeps order, is restored, has limits and survives errors. tests/conformance tests the protocol."""

from __future__ import annotations

import asyncio
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
    async def test_transmissions_precede_the_confirmation_which_precedes_history_and_live_messages(self) -> None:
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
    async def test_a_check_that_returns_false_or_an_exception_rejects_the_subscription(
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

    async def test_a_rejection_follows_the_transmissions_of_the_handler(self) -> None:
        async with Client() as client:
            await client.send("subscribe", identifier("Room", reject=1))
            assert (await client.receive())["message"] == {"why": "full"}
            assert (await client.receive())["type"] == "reject_subscription"

    async def test_repeated_subscribes_run_the_handler_once_and_are_answered_once(self) -> None:
        async with Client() as client:
            for _ in range(3):
                await client.send("subscribe", ROOM)
            assert [frame.get("type") for frame in await client.receive_many(2)] == [None, "confirm_subscription"]
            await client.send("subscribe", ROOM)
            assert await client.quiet()
            assert calls == [("subscribed", ROOM)]

    async def test_subscribing_again_after_an_unsubscribe_runs_the_handlers_again(self) -> None:
        async with Client() as client:
            await client.send("subscribe", ROOM)
            await client.send("unsubscribe", ROOM)
            await client.send("subscribe", ROOM)
            types = [frame.get("type") for frame in await client.receive_many(4)]
            assert types == [None, "confirm_subscription"] * 2
        assert [call[0] for call in calls] == ["subscribed", "unsubscribed", "subscribed", "unsubscribed"]

    async def test_the_number_of_subscriptions_is_limited(self) -> None:
        async with Client() as client:
            for number in range(5):
                await client.subscribe(identifier("Room", n=number))
            await client.send("subscribe", identifier("Room", n=6))
            assert (await client.receive())["type"] == "reject_subscription"

    async def test_a_stopped_stream_sends_nothing(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "leave_stream")
            await client.perform(ROOM, "thread")
            await client.receive()
            await abroadcast("room", 1)
            assert await client.quiet()


class TestActions:
    async def test_an_exception_drops_the_effects_of_the_action_and_the_connection_continues(
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

    async def test_an_action_whose_check_returns_false_is_not_called(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "increase", please=False)
            await client.perform(ROOM, "increase")
            assert (await client.receive())["message"] == {"count": 1}

    async def test_sync_handlers_run_in_handler_threads(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "thread")
            assert (await client.receive())["message"]["thread"].startswith("cable-handler")

    async def test_data_without_an_action_is_passed_to_receive(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.send("message", ROOM, data='{"text":"x"}')
            assert (await client.receive())["message"] == {"received": {"text": "x"}}

    async def test_an_unknown_action_is_logged_and_ignored(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "subscribed")
            await client.perform(ROOM, "increase")
            assert (await client.receive())["message"] == {"count": 1}
        assert "has no action 'subscribed'; it has fail, increase" in caplog.text


class TestBadFrames:
    async def test_too_many_bad_frames_disconnect_the_client(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL, "reliable_cable")
        async with Client() as client:
            for _ in range(20):
                await client.send_text("{")
            assert await client.quiet()
            await client.send_text("{")
            assert await client.receive() == {"type": "disconnect", "reason": "invalid_request", "reconnect": True}
            assert (await client.communicator.receive_output(5))["type"] == "websocket.close"


class TestRestore:
    async def test_subscriptions_and_state_are_restored_and_missed_messages_are_sent(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "increase")
            await client.receive()
            await abroadcast("room", 1)
            position = await client.receive()
        await abroadcast("room", 2)
        async with Client(client.sid) as restored:
            assert restored.welcome["restored_ids"] == [ROOM]
            assert restored.sid != client.sid
            await abroadcast("room", 3)
            assert await restored.quiet()
            streams = {"room": {"epoch": position["epoch"], "offset": position["offset"]}}
            await restored.send("history", ROOM, history={"streams": streams, "since": 1})
            frames = await restored.receive_many(3)
            assert [frame.get("type") or frame["message"] for frame in frames] == [2, 3, "confirm_history"]
            await restored.perform(ROOM, "increase")
            assert (await restored.receive())["message"] == {"count": 2}
        assert [call[0] for call in calls] == ["subscribed", "unsubscribed", "resubscribed", "unsubscribed"]

    async def test_a_client_that_received_no_message_gets_all_messages_since_it_subscribed(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
        await abroadcast("room", 1)
        async with Client(client.sid) as restored:
            await restored.send("history", ROOM, history={"since": 4_000_000_000, "streams": {}})
            assert [frame.get("message") for frame in await restored.receive_many(2)] == [1, None]

    async def test_a_subscription_that_resubscribed_rejects_is_not_restored(self) -> None:
        once = identifier("Room", once=1)
        async with Client() as client:
            await client.subscribe(once)
            await client.subscribe(ROOM)
        async with Client(client.sid) as restored:
            assert restored.welcome["restored_ids"] == [ROOM]
            await abroadcast("room", 1)
            assert await restored.quiet()

    async def test_a_restore_closes_the_former_connection_if_it_is_still_open(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            async with Client(client.sid) as restored:
                assert restored.welcome["restored_ids"] == [ROOM]
                await restored.send("history", ROOM)
                assert (await restored.receive())["type"] == "confirm_history"
                await abroadcast("room", 1)
                assert (await restored.receive())["message"] == 1
                assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}

    async def test_a_session_is_restored_only_for_the_same_user(self) -> None:
        async with Client(scope={"user": "ada"}) as client:
            await client.subscribe(ROOM)
        async with Client(client.sid, scope={"user": "bob"}) as other:
            assert "restored" not in other.welcome
        async with Client(client.sid, scope={"user": "ada"}) as restored:
            assert restored.welcome["restored"]

    async def test_a_restored_connection_that_requests_no_history_is_closed_without_a_disconnect_message(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("reliable_cable.connection.lifecycle.HISTORY_TIMEOUT", 0.01)
        async with Client() as client:
            await client.subscribe(ROOM)
        async with Client(client.sid) as restored:
            assert await restored.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}

    async def test_a_restored_client_is_not_sent_its_own_messages(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await abroadcast("room", 1)
            position = await client.receive()
            await abroadcast("room", 2, exclude_socket=client.sid)
            await abroadcast("room", 3)
            assert (await client.receive())["message"] == 3
        async with Client(client.sid) as restored:
            streams = {"room": {"epoch": position["epoch"], "offset": 1}}
            await restored.send("history", ROOM, history={"streams": streams})
            assert [frame.get("message") for frame in await restored.receive_many(2)] == [3, None]

    async def test_the_session_of_a_base_client_is_not_restored(self) -> None:
        async with Client(protocol=BASE) as client:
            assert set(client.welcome) == {"type", "sid"}
            await client.subscribe(ROOM)
            await abroadcast("room", 1)
            assert await client.receive() == {"identifier": ROOM, "message": 1}
        async with Client(client.sid, protocol=BASE) as second:
            assert set(second.welcome) == {"type", "sid"}


class TestStreamIds:
    async def test_the_second_identifier_on_a_stream_has_its_own_stream_id_in_every_session(self) -> None:
        second = identifier("Room", n=2)
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.subscribe(second)
            await abroadcast("room", 1)
            first_frame, second_frame = await client.receive_many(2)
            assert first_frame["stream_id"] == "room"
            assert second_frame["stream_id"] != "room"
        await abroadcast("room", 2)
        async with Client() as fresh:
            # The client has a new session and subscribes in another order. The second identifier keeps its stream id.
            position = {second_frame["stream_id"]: {"epoch": second_frame["epoch"], "offset": 1}}
            await fresh.subscribe(second, history={"streams": position})
            replayed = await fresh.receive()
            assert (replayed["stream_id"], replayed["offset"]) == (second_frame["stream_id"], 2)
            assert (await fresh.receive())["type"] == "confirm_history"
            await fresh.subscribe(ROOM)
            await abroadcast("room", 3)
            assert {frame["stream_id"] for frame in await fresh.receive_many(2)} == {"room", second_frame["stream_id"]}


class TestPubSub:
    async def test_a_public_stream_has_presence_and_whispers(self) -> None:
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
    async def test_a_client_without_a_supported_subprotocol_is_refused(self) -> None:
        connected, _ = await Client(protocol="graphql-ws").communicator.connect()
        assert not connected

    async def test_a_connect_that_takes_too_long_refuses_the_client(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr("reliable_cable.consumer.CONNECT_TIMEOUT", 0.01)

        class App(CableConsumer):
            async def connect(self) -> None:
                await asyncio.Event().wait()

        connected, _ = await Client(consumer=App).communicator.connect()
        assert not connected
        assert [record.message for record in caplog.records] == [
            "App.connect took more than 0.01 s. Its client was refused."
        ]

    async def test_channels_have_the_identifiers_that_connect_has_set(self) -> None:
        seen: list[Any] = []

        class Identified(Channel):
            def subscribed(self) -> None:
                seen.append((self.user, self.connection.tenant))

        class App(CableConsumer):
            identified_by = ("user", "tenant")

            async def connect(self) -> None:
                self.user = SimpleNamespace(name="ada")
                self.tenant = "t1"

        async with Client(consumer=App) as client:
            await client.subscribe(identifier("Identified"))
        assert seen == [(SimpleNamespace(name="ada"), "t1")]

    async def test_the_hub_keeps_nothing_of_a_closed_connection(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            hub = get_hub()
            assert hub.connections
        assert not hub.connections
        assert not hub._streams

    async def test_pings_are_sent_at_the_interval_that_the_client_requested(self) -> None:
        async with Client(query="pi=1") as client:
            frame = await client.receive()
            assert frame["type"] == "ping"
            assert isinstance(frame["message"], int)
