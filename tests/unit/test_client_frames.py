"""The handling of the frames of a client, tested without a server: refusals, presence, whispers and restores."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable import CableConsumer, Channel, StoreError, action
from reliable_cable.broadcasting import abroadcast
from reliable_cable.channel import registry
from reliable_cable.consumer import get_hub
from reliable_cable.hub.current import begin_draining
from reliable_cable.protocol.constants import SESSION_HEADER
from reliable_cable.servers.base import Transport
from reliable_cable.servers.drain import Drain
from reliable_cable.signing import signed_stream_name
from reliable_cable.stores.engine import get_engine

from .wire import BASE, Client, connection_of, identifier, leave_session, run_event_loop


class Room(Channel, abstract=True):
    async def subscribed(self) -> None:
        self.stream_from("room", whisper=True, presence=True)

    async def resubscribed(self) -> None:
        if "fails" in self.params:
            raise LookupError("no such room")
        if "returns as" in self.params:
            self.presence.join(self.params["returns as"])

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the name in the protocol
        if id == "error":
            raise LookupError("no such member")
        return id != "impostor"

    @action
    async def enter(self) -> None:
        self.presence.join("ann", {"by": "an action"})

    @action
    async def exit(self) -> None:
        self.presence.leave()

    @action
    async def kick(self) -> None:
        self.transmit("bye")
        self.reject()

    @action
    async def trespass(self) -> None:
        raise PermissionError

    async def handle_error(self, error: Exception, handler: str) -> None:
        if isinstance(error, PermissionError):
            await self.kick()

    @action
    async def wait(self) -> None:
        await asyncio.Event().wait()


class Plain(Channel, abstract=True):
    """A channel without streams and without `authorize_presence`."""


ROOM = identifier("Room")
PLAIN = identifier("Plain")


@pytest.fixture(autouse=True)
def _channels(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    registry.update({"Room": [Room], "Plain": [Plain]})
    yield
    for name in ("Room", "Plain"):
        registry.pop(name, None)


def change_settings(settings: Any, **values: Any) -> None:
    settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, **values}


async def frames(client: Client) -> list[Any]:
    """Return the frames that the client was sent until its commands had been handled."""
    received = await frames_before_pong(client)
    await connection_of(client).commands.finished(10)
    await run_event_loop()
    return received + await frames_before_pong(client)


async def frames_before_pong(client: Client) -> list[Any]:
    await client.send_text('{"command":"ping"}')
    received = []
    while (frame := await client.receive()) != {"type": "pong"}:
        received.append(frame)
    return received


async def disconnect_reason(client: Client) -> str:
    """Return the reason in the next `disconnect` message that the client receives. Other frames are dropped."""
    while (frame := await client.receive()).get("type") != "disconnect":
        pass
    return str(frame["reason"])


class TestRefusedFrames:
    async def test_a_binary_frame(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.communicator.send_to(bytes_data=b"{}")
            assert await client.quiet()
        assert "binary frames are not part of this subprotocol" in caplog.text

    async def test_a_frame_that_is_too_long(self, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
        change_settings(settings, MAX_MESSAGE_SIZE=1024)
        async with Client() as client:
            await client.send_text(json.dumps({"command": "ping", "x": "x" * 1024}))
            assert await client.quiet()
        assert "the frame is longer than MAX_MESSAGE_SIZE (1024)" in caplog.text

    async def test_an_invalid_subscribe_is_rejected(self) -> None:
        async with Client() as client:
            await client.send("subscribe", ROOM, history=1, presence={"id": "\ud800"})
            assert await frames(client) == [{"type": "reject_subscription", "identifier": ROOM}]

    @pytest.mark.parametrize("unknown", [identifier("Nowhere"), "no JSON"])
    async def test_a_subscribe_to_an_unknown_channel_is_rejected(self, unknown: str) -> None:
        async with Client() as client:
            await client.send("subscribe", unknown)
            assert await frames(client) == [{"type": "reject_subscription", "identifier": unknown}]

    async def test_a_command_that_is_not_part_of_the_base_subprotocol(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client(protocol=BASE) as client:
            await client.subscribe(ROOM)
            await client.send("whisper", ROOM, data=1)
            assert await frames(client) == []
        assert "Whisper is not part of actioncable-v1-json" in caplog.text


async def test_a_client_that_stops_answering_pings_is_disconnected(settings: Any) -> None:
    change_settings(settings, PING_INTERVAL=0.05, PONG_TIMEOUT=0.1)
    async with Client(protocol=BASE) as client:
        await client.send_text('{"command":"pong"}')
        assert await disconnect_reason(client) == "no_pong"


class TestWithoutASubscription:
    async def test_only_a_request_for_the_members_is_answered(self) -> None:
        async with Client() as client:
            for command in ("unsubscribe", "history", "leave"):
                await client.send(command, ROOM)
            await client.send("presence", ROOM)
            assert await frames(client) == [
                {"type": "presence", "identifier": ROOM, "message": {"type": "error"}},
            ]


class TestPresence:
    async def test_a_member_joins_and_leaves(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.send("join", ROOM, presence={"id": "ann", "info": 1})
            await client.send("leave", ROOM)
            events = [frame["message"] for frame in await frames(client)]
            assert events == [{"type": "join", "id": "ann", "info": 1}, {"type": "leave", "id": "ann"}]

    async def test_an_action_joins_and_leaves(self) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.perform(ROOM, "enter")
            await client.perform(ROOM, "exit")
            events = [frame["message"] for frame in await frames(client)]
            join = {"type": "join", "id": "ann", "info": {"by": "an action"}}
            assert events == [join, {"type": "leave", "id": "ann"}]

    @pytest.mark.parametrize("id_", ["impostor", "error"])
    async def test_the_channel_can_refuse_a_join(self, id_: str) -> None:
        async with Client() as client:
            await client.subscribe(ROOM)
            await client.send("join", ROOM, presence={"id": id_})
            assert await frames(client) == []

    async def test_without_authorize_presence_joins_are_refused(self, caplog: pytest.LogCaptureFixture) -> None:
        async with Client() as client:
            await client.subscribe(PLAIN)
            await client.send("join", PLAIN, presence={"id": "ann"})
            assert await frames(client) == []
        assert "Plain has no authorize_presence()" in caplog.text

    async def test_without_a_stream_nobody_joins_and_there_are_no_members(self) -> None:
        class Alone(Channel, abstract=True):
            async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the name in the protocol
                return True

        registry["Plain"] = [Alone]
        async with Client() as client:
            await client.subscribe(PLAIN)
            await client.send("join", PLAIN, presence={"id": "ann"})
            await client.send("presence", PLAIN)
            assert [frame["message"] for frame in await frames(client)] == [{"type": "error"}, {"type": "error"}]


class TestWhispers:
    async def test_a_whisper_reaches_the_other_subscribers(self) -> None:
        async with Client() as ann, Client() as bob:
            await ann.subscribe(ROOM)
            await bob.subscribe(ROOM)
            # Clients drop falsy messages, so the server does not send them.
            for data in ("", {"typing": True}):
                await ann.send("whisper", ROOM, data=data)
            assert await bob.receive() == {"identifier": ROOM, "message": {"typing": True}}
            assert await frames(ann) == []

    async def test_without_a_stream_for_whispers_they_are_dropped(self) -> None:
        async with Client() as client:
            await client.subscribe(PLAIN)
            await client.send("whisper", PLAIN, data={"typing": True})
            assert await frames(client) == []


@pytest.mark.parametrize("name", ["kick", "trespass"])
async def test_an_action_or_handle_error_can_end_the_subscription_of_a_base_client(name: str) -> None:
    async with Client(protocol=BASE) as client:
        await client.subscribe(ROOM)
        await client.perform(ROOM, name)
        assert await frames(client) == [
            {"identifier": ROOM, "message": "bye"},
            {"type": "reject_subscription", "identifier": ROOM},
        ]
        await abroadcast("room", 1)
        assert await client.quiet()


@pytest.mark.parametrize("name", ["kick", "trespass"])
async def test_an_extended_client_whose_subscription_is_ended_so_has_to_subscribe_again(name: str) -> None:
    # A client ignores a rejection if no `subscribe` is pending, so its channel would silently receive nothing more.
    async with Client() as former:
        for each in (ROOM, PLAIN):
            await former.subscribe(each)
        await former.perform(ROOM, name)
        assert (await former.receive())["message"] == "bye"
        assert await former.receive() == {"identifier": ROOM, "message": {"type": "revoked", "reason": "revoked"}}
        assert await former.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}
    async with Client(former.sid) as client:
        assert client.welcome["restored_ids"] == [PLAIN]
        await client.subscribe(ROOM)


class TestSignedStreams:
    async def test_a_signed_stream(self) -> None:
        signed = identifier("$pubsub", signed_stream_name=signed_stream_name("news"))
        async with Client() as client:
            await client.subscribe(signed)
            await abroadcast("news", 1)
            assert (await client.receive())["message"] == 1

    @pytest.mark.parametrize("name", ["news", "bmV3cw==--0123", 1])
    async def test_a_name_without_a_valid_signature_is_rejected(self, name: Any) -> None:
        signed = identifier("$pubsub", signed_stream_name=name)
        async with Client() as client:
            await client.send("subscribe", signed)
            assert await frames(client) == [{"type": "reject_subscription", "identifier": signed}]

    async def test_a_restore_of_a_signed_stream(self) -> None:
        signed = identifier("$pubsub", signed_stream_name=signed_stream_name("news"))
        async with Client() as client:
            await client.subscribe(signed)
        async with Client(client.sid) as restored:
            assert restored.welcome["restored_ids"] == [signed]


class TestRestore:
    async def test_the_session_id_may_be_in_a_header(self) -> None:
        sid = await leave_session(Client(), ROOM)
        async with Client(scope={"headers": [(b"host", b"testserver"), (SESSION_HEADER, sid.encode())]}) as client:
            assert client.welcome["restored_ids"] == [ROOM]

    async def test_a_session_that_cannot_be_loaded_is_not_restored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sid = await leave_session(Client(), ROOM)

        async def fail(*args: Any) -> None:
            raise StoreError("the store is gone")

        monkeypatch.setattr(get_engine().sessions, "aload_many", fail)
        async with Client(sid) as client:
            assert "restored" not in client.welcome

    async def test_a_record_that_another_version_has_written_is_not_restored(self) -> None:
        async with Client() as client:
            for each in (ROOM, PLAIN):
                await client.subscribe(each)
            record = connection_of(client).record()
        del record.data["subscriptions"][1]["state"]
        await get_engine().sessions.asave({client.sid: record})
        async with Client(client.sid) as returned:
            assert "restored" not in returned.welcome
            assert connection_of(returned).subscriptions == {}

    async def test_a_subscription_to_a_removed_channel_is_not_restored(self) -> None:
        sid = await leave_session(Client(), ROOM, PLAIN)
        del registry["Room"]
        async with Client(sid) as client:
            assert client.welcome["restored_ids"] == [PLAIN]

    async def test_a_subscription_whose_handler_fails_is_not_restored(self) -> None:
        sid = await leave_session(Client(), identifier("Room", fails=1), PLAIN)
        async with Client(sid) as client:
            assert client.welcome["restored_ids"] == [PLAIN]

    async def test_resubscribed_may_join_as_another_member(self) -> None:
        room = identifier("Room", **{"returns as": "eve"})
        async with Client() as client:
            await client.subscribe(room, presence={"id": "ann"})
        async with Client(client.sid) as restored:
            await restored.send("history", room)
            await frames(restored)
            await restored.send("presence", room)
            (info,) = await frames(restored)
            assert [member["id"] for member in info["message"]["records"]] == ["eve"]


class TestConnecting:
    async def test_a_draining_hub_closes_its_connections_and_refuses_new_ones(self) -> None:
        client = Client(protocol=BASE)
        async with client:
            draining = asyncio.create_task(get_hub().drain(0))
            assert await disconnect_reason(client) == "server_restart"
        await asyncio.wait_for(draining, 10)
        connected, _ = await Client().communicator.connect()
        assert not connected

    async def test_a_client_is_refused_if_the_hub_drains_while_it_connects(self) -> None:
        class Slow(CableConsumer):
            async def connect(self) -> None:
                await get_hub().drain(0)

        connected, _ = await Client(consumer=Slow).communicator.connect()
        assert not connected

    async def test_a_client_is_closed_if_the_hub_drains_while_the_session_is_restored(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sid = await leave_session(Client(), ROOM)
        sessions = get_engine().sessions
        load = sessions.aload_many

        async def load_late(*args: Any) -> Any:
            await get_hub().drain(0)
            return await load(*args)

        monkeypatch.setattr(sessions, "aload_many", load_late)
        async with Client(sid) as client:
            assert client.welcome["restored_ids"] == [ROOM]
            assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}

    async def test_the_first_client_is_refused_if_the_server_is_already_stopping(self) -> None:
        assert begin_draining() is None
        connected, _ = await Client().communicator.connect()
        assert not connected
        assert begin_draining() is get_hub()

    async def test_the_first_connection_installs_the_drain_if_the_server_can_be_drained(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Drainable(Transport):
            drainable = True

        monkeypatch.setattr("reliable_cable.consumer.transport_for", lambda scope, send: Drainable(send))
        former = signal.signal(signal.SIGTERM, lambda number, frame: None)
        try:
            async with Client():
                installed = signal.getsignal(signal.SIGTERM)
                async with Client():
                    assert signal.getsignal(signal.SIGTERM) == installed
        finally:
            replaced = signal.signal(signal.SIGTERM, former)
        assert getattr(replaced, "__func__", None) is Drain._handle

    async def test_a_channel_layer_that_is_not_configured_is_an_error(self, settings: Any) -> None:
        class Layered(CableConsumer):
            channel_layer_alias = "default"

        settings.CHANNEL_LAYERS = {}
        with pytest.raises(ValueError, match="there is no channel layer 'default'"):
            await Client(consumer=Layered).communicator.connect()

    async def test_an_error_in_connect_is_raised_to_the_server(self) -> None:
        class Broken(CableConsumer):
            async def connect(self) -> None:
                raise LookupError("a bug")

        with pytest.raises(LookupError, match="a bug"):
            await Client(consumer=Broken).communicator.connect()
