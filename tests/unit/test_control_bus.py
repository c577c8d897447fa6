"""Control messages disconnect clients at every stage of a connection, and a loss of control messages is noticed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest

from reliable_cable import CableConsumer, Channel, StoreError, action, state
from reliable_cable.channel import registry
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.connection.commands import Commands
from reliable_cable.connection.lifecycle import end_connection
from reliable_cable.consumer import get_hub
from reliable_cable.disconnecting import adisconnect
from reliable_cable.hub import control_bus
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.sessions.base import CLOCK_MARGIN
from reliable_cable.stores.streams.base import Message

from .wire import BASE, Client, connection_of, identifier, run_event_loop, send_control_message


class Counter(Channel, abstract=True):
    count = state(default=0)

    async def resubscribed(self) -> None:
        self.transmit({"count": self.count})

    @action
    async def wait(self) -> None:
        await wait_ended.wait()

    @action
    async def increase(self) -> None:
        self.count += 1
        self.transmit({"count": self.count})


COUNTER = identifier("Counter")
#: Set to end the action `wait`.
wait_ended = asyncio.Event()


@pytest.fixture(autouse=True)
async def _counter(settings: Any) -> AsyncIterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    registry["Counter"] = [Counter]
    wait_ended.clear()
    yield
    wait_ended.set()
    del registry["Counter"]


@pytest.fixture
def gate() -> Iterator[asyncio.Event]:
    """An event for which the `connect` of `WaitingConsumer` waits."""
    WaitingConsumer.gate = asyncio.Event()
    WaitingConsumer.connecting = asyncio.Event()
    yield WaitingConsumer.gate
    WaitingConsumer.gate.set()


class WaitingConsumer(CableConsumer):
    gate = asyncio.Event()
    connecting = asyncio.Event()

    async def connect(self) -> None:
        self.connecting.set()
        await self.gate.wait()


class StoreTime:
    """The time of the session store. It passes only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr(get_engine().sessions, "clock", lambda: self.now)


async def expect_disconnect(client: Client, *, reconnect: bool) -> None:
    """Expect a remote disconnect."""
    assert await client.receive() == {"type": "disconnect", "reason": "remote", "reconnect": reconnect}
    assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}


async def increase(client: Client, expected: int) -> None:
    """Increase the counter of the channel, and expect its new value."""
    await client.perform(COUNTER, "increase")
    assert (await client.receive())["message"] == {"count": expected}


def ann(**options: Any) -> Client:
    """Return a client of the user Ann."""
    return Client(scope={"user": "ann"}, **options)


class TestRemoteDisconnect:
    @pytest.mark.parametrize("protocol", ["actioncable-v1-ext-json", BASE])
    @pytest.mark.parametrize("reconnect", [False, True])
    async def test_disconnects_only_the_connections_of_the_named_user(self, protocol: str, reconnect: bool) -> None:
        async with ann(protocol=protocol) as client, Client(scope={"user": "bob"}) as other, Client() as anonymous:
            await adisconnect(user="ann", reconnect=reconnect)
            await expect_disconnect(client, reconnect=reconnect)
            assert await other.quiet()
            assert await anonymous.quiet()

    async def test_matches_connections_by_any_subset_of_their_identifiers(self) -> None:
        class Tenant(CableConsumer):
            identified_by = ("user", "tenant")

            def connect(self) -> None:
                self.tenant = self.scope["tenant"]

        scopes = [{"user": user, "tenant": tenant} for user in ("ann", "bob") for tenant in (1, 2)]
        clients = [Client(consumer=Tenant, scope=scope) for scope in scopes]
        for client in clients:
            await client.__aenter__()
        await adisconnect(tenant=1, user="bob")
        await expect_disconnect(clients[2], reconnect=False)
        await adisconnect(tenant=2)
        for client in (clients[1], clients[3]):
            await expect_disconnect(client, reconnect=False)
        assert await clients[0].quiet()
        for client in clients:
            await client.__aexit__(None, None, None)

    async def test_disconnects_a_client_that_is_being_authenticated(self, gate: asyncio.Event) -> None:
        async with Client(scope={"user": "bob"}):  # so that this process already receives control messages
            client = ann(consumer=WaitingConsumer)
            connecting = asyncio.ensure_future(client.communicator.connect())
            await WaitingConsumer.connecting.wait()
            await adisconnect(user="ann")
            await run_event_loop()
            gate.set()
            await connecting
            await expect_disconnect(client, reconnect=False)
            await client.communicator.disconnect()

    async def test_disconnects_a_client_whose_connection_is_the_first_of_its_process(self, gate: asyncio.Event) -> None:
        client = ann(consumer=WaitingConsumer)
        connecting = asyncio.ensure_future(client.communicator.connect())
        await WaitingConsumer.connecting.wait()
        await adisconnect(user="ann")
        gate.set()
        await connecting
        assert (await client.receive())["type"] == "welcome"
        await expect_disconnect(client, reconnect=False)
        await client.communicator.disconnect()

    async def test_disconnects_a_client_whose_session_is_being_restored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with ann() as former:
            await former.subscribe(COUNTER)
        loaded, gate = asyncio.Event(), asyncio.Event()
        sessions = get_engine().sessions
        load = sessions.aload_many

        async def delayed(*args: Any) -> Any:
            record = await load(*args)
            loaded.set()
            await gate.wait()
            return record

        monkeypatch.setattr(sessions, "aload_many", delayed)
        async with Client(scope={"user": "bob"}):
            client = ann(sid=former.sid)
            await client.communicator.connect()
            await loaded.wait()
            await adisconnect(user="ann")
            await run_event_loop()
            gate.set()
            await expect_disconnect(client, reconnect=False)
            await client.communicator.disconnect()

    async def test_prevents_the_restore_of_a_session_whose_connection_is_just_ending(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A page that logs out closes its connection at the same time. The session must not be kept.
        clock = StoreTime(monkeypatch)
        async with ann() as client:
            await client.subscribe(COUNTER)
            await client.perform(COUNTER, "wait")
            await run_event_loop()
            ending = asyncio.ensure_future(end_connection(cast(Commands, connection_of(client).commands)))
            await run_event_loop()
            await adisconnect(user="ann")
            await run_event_loop()
            clock.now += CLOCK_MARGIN + 0.1
            async with ann(sid=client.sid) as second:
                assert "restored" not in second.welcome
            wait_ended.set()
            await ending
        async with ann(sid=client.sid) as second:
            assert "restored" not in second.welcome

    async def test_does_not_affect_clients_that_connect_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = StoreTime(monkeypatch)
        await adisconnect(user="ann")
        clock.now += CLOCK_MARGIN + 0.1
        async with ann() as client:
            await client.subscribe(COUNTER)
            await run_event_loop()
            await increase(client, 1)
        async with ann(sid=client.sid) as second:
            assert second.welcome["restored_ids"] == [COUNTER]

    async def test_allows_clients_to_reconnect_that_perhaps_connected_later(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # This client may have been authenticated before the logout or after it: clocks of hosts differ, and
        # Django sends the signal of the logout before it deletes the login session.
        clock = StoreTime(monkeypatch)
        async with Client(scope={"user": "bob"}):
            await adisconnect(user="ann", reconnect=False)
            await run_event_loop()
            clock.now += CLOCK_MARGIN / 2
            client = ann()
            await client.communicator.connect()
            await expect_disconnect(client, reconnect=True)
            await client.communicator.disconnect()

    async def test_deletes_the_session_record(self) -> None:
        async with ann() as client:
            await client.subscribe(COUNTER)
            await adisconnect(user="ann")
            await expect_disconnect(client, reconnect=False)
            await run_event_loop()
            assert await get_engine().sessions.atouch([client.sid]) == {client.sid}, "its record was not deleted"


class TestMessages:
    @pytest.mark.parametrize("data", ["{", "[]", '"x"', '{"revoke": {}}', '{"supersede": [1]}', '{"other": 1}'])
    async def test_unknown_messages_are_ignored(self, data: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL, "reliable_cable")
        async with ann() as client:
            await get_engine().streams.aappend([(CONTROL_STREAM, Message(data))])
            await run_event_loop()
            assert await client.quiet()
            await adisconnect(user="ann")
            await expect_disconnect(client, reconnect=False)

    async def test_messages_are_received_while_there_are_connections(self) -> None:
        async with Client(), Client():
            hub = get_hub()
            await run_event_loop()
            assert set(hub._streams) == {CONTROL_STREAM}
        assert not hub._streams

    async def test_messages_are_received_as_soon_as_the_store_can_be_read(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        streams = get_engine().streams
        read = streams.aread
        attempted = asyncio.Event()

        async def fail(*args: Any, **options: Any) -> Any:
            attempted.set()
            raise StoreError("down")

        monkeypatch.setattr(control_bus, "BACKGROUND_RETRY_DELAY", 0.001)
        monkeypatch.setattr(streams, "aread", fail)
        async with ann() as client:
            await attempted.wait()
            await adisconnect(user="ann")
            await run_event_loop()
            monkeypatch.setattr(streams, "aread", read)
            await expect_disconnect(client, reconnect=False)


class TestLostMessages:
    async def test_connections_that_were_revoked_meanwhile_are_disconnected(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        await send_control_message({"other": 1})
        async with ann() as client, Client(scope={"user": "bob"}) as other:
            await run_event_loop()
            await get_engine().sessions.arevoke({"user": "str:ann"})
            await get_engine().streams.aforget(CONTROL_STREAM)
            await expect_disconnect(client, reconnect=True)
            assert await other.quiet()
        assert "Control messages were lost" in caplog.text

    async def test_all_clients_authenticate_again_if_the_session_store_has_lost_data_too(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_bus, "REAUTHENTICATION_TIME", 0.0)
        monkeypatch.setattr(get_engine().sessions, "may_lose_data", True)
        await send_control_message({"other": 1})
        async with ann() as client, Client(protocol=BASE) as base:
            await client.subscribe(COUNTER)
            await increase(client, 1)
            await run_event_loop()
            sessions = get_engine().sessions
            await sessions.adelete(list(sessions._records))  # type: ignore[attr-defined]
            await get_engine().streams.aforget(CONTROL_STREAM)
            assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}
            assert await base.receive() == {"type": "disconnect", "reason": "server_restart", "reconnect": True}
        async with ann(sid=client.sid) as second:
            assert second.welcome["restored_ids"] == [COUNTER]

    async def test_the_check_for_revocations_is_retried_until_it_succeeds(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(control_bus, "BACKGROUND_RETRY_DELAY", 0.001)
        sessions = get_engine().sessions
        revoked = sessions.arevoked
        tries = 0

        async def fail_first(identities: Any) -> Any:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise StoreError("down")
            return await revoked(identities)

        monkeypatch.setattr(sessions, "arevoked", fail_first)
        await send_control_message({"other": 1})
        async with ann() as client:
            await run_event_loop()
            await sessions.arevoke({"user": "str:ann"})
            await get_engine().streams.aforget(CONTROL_STREAM)
            await expect_disconnect(client, reconnect=True)
