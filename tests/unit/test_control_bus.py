"""What the processes tell each other: remote disconnects and takeovers, at every moment of a connection's life."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, cast

import pytest

from reliable_cable import CableConsumer, Channel, StoreError, action, state
from reliable_cable.channel import registry
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.connection.commands import Commands
from reliable_cable.connection.lifecycle import end_connection
from reliable_cable.consumer import get_hub
from reliable_cable.disconnecting import adisconnect
from reliable_cable.hub import control_bus as control
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.sessions.base import CLOCK_MARGIN, SessionRecord
from reliable_cable.stores.streams.base import Message

from .wire import BASE, Client, connection_of, identifier, until


class Counter(Channel, abstract=True):
    count = state(default=0)

    async def resubscribed(self) -> None:
        self.transmit({"count": self.count})

    @action
    async def wait(self) -> None:
        await go_on.wait()

    @action
    async def increase(self) -> None:
        self.count += 1
        self.transmit({"count": self.count})


COUNTER = identifier("Counter")
#: What the action `wait` waits for.
go_on = asyncio.Event()


@pytest.fixture(autouse=True)
async def _counter(settings: Any) -> AsyncIterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    registry["Counter"] = [Counter]
    go_on.clear()
    yield
    go_on.set()
    del registry["Counter"]


@pytest.fixture
def gate() -> Iterator[asyncio.Event]:
    """What the `connect` of `Waiting` waits for."""
    Waiting.gate = asyncio.Event()
    Waiting.waiting = asyncio.Event()
    yield Waiting.gate
    Waiting.gate.set()


class Waiting(CableConsumer):
    gate = asyncio.Event()
    waiting = asyncio.Event()

    async def connect(self) -> None:
        self.waiting.set()
        await self.gate.wait()


class Time:
    """The session store's clock, turned by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000.0
        monkeypatch.setattr(get_engine().sessions, "clock", lambda: self.now)


async def turns() -> None:
    """Let the loop run what can run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def hear(message: Any) -> None:
    """Let every process hear a control message."""
    await get_engine().streams.aappend([(CONTROL_STREAM, Message(json.dumps(message)))])
    await turns()


async def farewell(client: Client, *, reconnect: bool) -> None:
    """Expect to be sent away."""
    assert await client.receive() == {"type": "disconnect", "reason": "remote", "reconnect": reconnect}
    assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}


async def count(client: Client, expected: int) -> None:
    """Expect the channel to count on."""
    await client.perform(COUNTER, "increase")
    assert (await client.receive())["message"] == {"count": expected}


def ann(**options: Any) -> Client:
    """Return a client whose user is Ann."""
    return Client(scope={"user": "ann"}, **options)


class TestRemoteDisconnect:
    @pytest.mark.parametrize("protocol", ["actioncable-v1-ext-json", BASE])
    @pytest.mark.parametrize("reconnect", [False, True])
    async def test_sends_away_whom_it_names_and_nobody_else(self, protocol: str, reconnect: bool) -> None:
        async with ann(protocol=protocol) as client, Client(scope={"user": "bob"}) as other, Client() as anonymous:
            await adisconnect(user="ann", reconnect=reconnect)
            await farewell(client, reconnect=reconnect)
            assert await other.quiet()
            assert await anonymous.quiet()

    async def test_matches_some_of_the_identifiers(self) -> None:
        class Tenant(CableConsumer):
            identified_by = ("user", "tenant")

            def connect(self) -> None:
                self.tenant = self.scope["tenant"]

        scopes = [{"user": user, "tenant": tenant} for user in ("ann", "bob") for tenant in (1, 2)]
        clients = [Client(consumer=Tenant, scope=scope) for scope in scopes]
        for client in clients:
            await client.__aenter__()
        await adisconnect(tenant=1, user="bob")
        await farewell(clients[2], reconnect=False)
        await adisconnect(tenant=2)
        for client in (clients[1], clients[3]):
            await farewell(client, reconnect=False)
        assert await clients[0].quiet()
        for client in clients:
            await client.__aexit__(None, None, None)

    async def test_does_not_miss_who_is_being_authenticated(self, gate: asyncio.Event) -> None:
        async with Client(scope={"user": "bob"}):  # so that the process has heard of it by then
            client = ann(consumer=Waiting)
            connecting = asyncio.ensure_future(client.communicator.connect())
            await Waiting.waiting.wait()
            await adisconnect(user="ann")
            await turns()
            gate.set()
            await connecting
            await farewell(client, reconnect=False)
            await client.communicator.disconnect()

    async def test_nor_whose_connection_is_the_first_of_its_process(self, gate: asyncio.Event) -> None:
        client = ann(consumer=Waiting)
        connecting = asyncio.ensure_future(client.communicator.connect())
        await Waiting.waiting.wait()
        await adisconnect(user="ann")
        gate.set()
        await connecting
        assert (await client.receive())["type"] == "welcome"
        await farewell(client, reconnect=False)
        await client.communicator.disconnect()

    async def test_nor_who_is_being_restored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with ann() as former:
            await former.subscribe(COUNTER)
        loaded, go_on = asyncio.Event(), asyncio.Event()
        sessions = get_engine().sessions
        load = sessions.aload

        async def held(*args: Any) -> Any:
            record = await load(*args)
            loaded.set()
            await go_on.wait()
            return record

        monkeypatch.setattr(sessions, "aload", held)
        async with Client(scope={"user": "bob"}):
            client = ann(sid=former.sid)
            await client.communicator.connect()
            await loaded.wait()
            await adisconnect(user="ann")
            await turns()
            go_on.set()
            await farewell(client, reconnect=False)
            await client.communicator.disconnect()

    async def test_nor_who_is_just_leaving(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # A page that logs out goes away at the same time, and its session would be kept.
        clock = Time(monkeypatch)
        async with ann() as client:
            await client.subscribe(COUNTER)
            await client.perform(COUNTER, "wait")
            await turns()
            ending = asyncio.ensure_future(end_connection(cast(Commands, connection_of(client).commands)))
            await turns()
            await adisconnect(user="ann")
            await turns()
            clock.now += CLOCK_MARGIN + 0.1
            async with ann(sid=client.sid) as again:
                assert "restored" not in again.welcome
            go_on.set()
            await ending
        async with ann(sid=client.sid) as again:
            assert "restored" not in again.welcome

    async def test_concerns_nobody_who_comes_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Time(monkeypatch)
        await adisconnect(user="ann")
        clock.now += CLOCK_MARGIN + 0.1
        async with ann() as client:
            await client.subscribe(COUNTER)
            await turns()
            await count(client, 1)
        async with ann(sid=client.sid) as again:
            assert again.welcome["restored_ids"] == [COUNTER]

    async def test_lets_those_come_back_who_perhaps_came_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Clocks of different hosts, and a login session that is deleted after the signal of the logout.
        clock = Time(monkeypatch)
        async with Client(scope={"user": "bob"}):
            await adisconnect(user="ann", reconnect=False)
            await turns()
            clock.now += CLOCK_MARGIN / 2
            client = ann()
            await client.communicator.connect()
            await farewell(client, reconnect=True)
            await client.communicator.disconnect()

    async def test_leaves_no_session_behind(self) -> None:
        async with ann() as client:
            await client.subscribe(COUNTER)
            await adisconnect(user="ann")
            await farewell(client, reconnect=False)
            await turns()
            assert await get_engine().sessions.atouch([client.sid]) == {client.sid}, "its record is gone"


class TestTakeovers:
    async def test_a_session_that_went_on_elsewhere_is_closed_without_a_word(self) -> None:
        async with Client() as client:
            await hear({"supersede": [[client.sid, "elsewhere"]]})
            assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}

    async def test_it_is_found_by_a_former_id(self) -> None:
        async with Client() as first:
            pass
        async with Client(first.sid) as second:
            await hear({"supersede": [["unknown", "x"], [first.sid, "elsewhere"]]})
            assert await second.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}

    async def test_the_heir_and_its_heirs_are_not(self) -> None:
        async with Client() as first:
            pass
        async with Client(first.sid) as second:
            await hear({"supersede": [[first.sid, second.sid]]})
            assert await second.quiet()
        async with Client(second.sid) as third:
            # Heard late: what the second one superseded.
            await hear({"supersede": [[first.sid, second.sid]]})
            assert await third.quiet()

    async def test_nor_is_who_came_back_once_more_with_an_older_id(self) -> None:
        # Its client never heard the welcome of the one between, whose announcement is heard last.
        async with Client() as former:
            pass
        async with Client(former.sid) as unheard, Client(former.sid) as client:
            await hear({"supersede": [[former.sid, unheard.sid]]})
            assert await client.quiet()

    async def test_the_one_that_was_announced_last_stays(self) -> None:
        async with Client() as first:
            pass
        sessions = get_engine().sessions
        record = await sessions.aload(first.sid, {"user": ""})
        assert record is not None
        # Its connection may still be alive, in another process.
        await sessions.asave({first.sid: SessionRecord(record.identity, 0, {**record.data, "alive": True})})
        async with Client(first.sid) as second:
            assert second.welcome["restored"]
            # Another process announced itself before this one did.
            get_hub().control.receive(json.dumps({"supersede": [[first.sid, "elsewhere"]]}))
            assert await second.quiet()
            await until(lambda: not get_hub().control._unconfirmed)
            get_hub().control.receive(json.dumps({"supersede": [[first.sid, "elsewhere"]]}))
            assert await second.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}

    async def test_a_session_that_was_left_properly_is_not_announced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[Any] = []
        monkeypatch.setattr(control.ControlBus, "announce_takeover", lambda *args: said.append(args))
        async with Client() as first:
            pass
        async with Client(first.sid):
            pass
        assert said == []

    async def test_but_the_next_one_is_if_that_takeover_was_never_heard_of(self) -> None:
        async with Client() as first:
            pass
        async with Client(first.sid):
            record = await get_engine().sessions.aload(first.sid, {"user": ""})
            assert record is not None
            assert record.data["alive"]

    async def test_many_are_announced_together_and_until_it_succeeds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        streams = get_engine().streams
        append = streams.aappend
        tries: list[Message] = []
        done = asyncio.Event()

        async def fail_first(items: Sequence[tuple[str, Message]]) -> Any:
            tries.append(items[0][1])
            if len(tries) == 1:
                raise StoreError("down")
            done.set()
            return await append(items)

        monkeypatch.setattr(streams, "aappend", fail_first)
        monkeypatch.setattr(control, "RETRY_DELAY", 0.001)
        async with Client() as client:
            hub = get_hub()
            connection = connection_of(client)
            for number in range(3):
                hub.control.announce_takeover(f"sid{number}", connection)
            assert hub.control._unconfirmed == {client.sid}
            await asyncio.wait_for(done.wait(), 5)
            await turns()
            assert json.loads(tries[0].data) == {"supersede": [[f"sid{n}", client.sid] for n in range(3)]}
            assert tries[0] == tries[1], "with the same idempotency key"
            assert not hub.control._unconfirmed


class TestMessages:
    @pytest.mark.parametrize("data", ["{", "[]", '"x"', '{"revoke": {}}', '{"supersede": [1]}', '{"other": 1}'])
    async def test_of_other_versions_break_nothing(self, data: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL, "reliable_cable")
        async with ann() as client:
            await get_engine().streams.aappend([(CONTROL_STREAM, Message(data))])
            await turns()
            assert await client.quiet()
            await adisconnect(user="ann")
            await farewell(client, reconnect=False)

    async def test_are_heard_while_there_are_connections(self) -> None:
        async with Client(), Client():
            hub = get_hub()
            await turns()
            assert set(hub._streams) == {CONTROL_STREAM}
        assert not hub._streams

    async def test_are_heard_as_soon_as_the_store_can_be_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        streams = get_engine().streams
        read = streams.aread
        tried = asyncio.Event()

        async def fail(*args: Any, **options: Any) -> Any:
            tried.set()
            raise StoreError("down")

        monkeypatch.setattr(control, "RETRY_DELAY", 0.001)
        monkeypatch.setattr(streams, "aread", fail)
        async with ann() as client:
            await tried.wait()
            await adisconnect(user="ann")
            await turns()
            monkeypatch.setattr(streams, "aread", read)
            await farewell(client, reconnect=False)


class TestLostMessages:
    async def test_only_those_are_sent_away_who_were_revoked_meanwhile(self, caplog: pytest.LogCaptureFixture) -> None:
        await hear({"other": 1})
        async with ann() as client, Client(scope={"user": "bob"}) as other:
            await turns()
            await get_engine().sessions.arevoke({"user": "str:ann"})
            await get_engine().streams.aforget(CONTROL_STREAM)
            await farewell(client, reconnect=True)
            assert await other.quiet()
        assert "Control messages were lost" in caplog.text

    async def test_all_authenticate_again_if_the_sessions_are_lost_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "REAUTHENTICATION_TIME", 0.0)
        monkeypatch.setattr(get_engine().sessions, "may_lose_data", True)
        await hear({"other": 1})
        async with ann() as client, Client(protocol=BASE) as base:
            await client.subscribe(COUNTER)
            await count(client, 1)
            await turns()
            sessions = get_engine().sessions
            await sessions.adelete(list(sessions._records))  # type: ignore[attr-defined]
            await get_engine().streams.aforget(CONTROL_STREAM)
            assert await client.communicator.receive_output(5) == {"type": "websocket.close", "code": 1000}
            assert await base.receive() == {"type": "disconnect", "reason": "server_restart", "reconnect": True}
        async with ann(sid=client.sid) as again:
            assert again.welcome["restored_ids"] == [COUNTER]

    async def test_the_check_goes_on_until_it_succeeds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "RETRY_DELAY", 0.001)
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
        await hear({"other": 1})
        async with ann() as client:
            await turns()
            await sessions.arevoke({"user": "str:ann"})
            await get_engine().streams.aforget(CONTROL_STREAM)
            await farewell(client, reconnect=True)
