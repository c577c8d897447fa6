"""`disconnect()` and logging out end all connections of a user in all processes, and sessions without a connection."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import pytest

from reliable_cable.stores.sessions.base import CLOCK_MARGIN
from tests.conformance.conftest import Connect, Pair, suspend
from tests.conformance.test_takeover import check_works, resume, subscribe
from tests.support.client import BASE, EXTENDED, PATIENCE, Client, identify, unique
from tests.support.server import OtherProcess, Server


async def expect_disconnect(client: Client, *, reconnect: bool) -> None:
    """Wait until the server has closed the connection, and check that the last frame was `disconnect`."""
    await client.until({"type": "disconnect"})
    await client.closed()
    assert client.log[-1] == {"type": "disconnect", "reason": "remote", "reconnect": reconnect}


async def connect_afterwards(server: Server, **options: Any) -> Client:
    """Wait until the server's time is certainly later than all earlier calls of `disconnect`, and connect a client."""
    # The server estimates the time of the store, which uses the clock of this host. The estimate is a little early.
    certain = time.time() + CLOCK_MARGIN + 0.05
    deadline = time.monotonic() + PATIENCE
    while await server.call("session_time") <= certain:
        assert time.monotonic() < deadline, "the server's time of the session store is wrong"
        await asyncio.sleep(0.05)
    client = Client(server.url, **options)
    await client.open()
    client.welcome = await client.expect({"type": "welcome"})
    return client


@pytest.mark.parametrize("reconnect", [False, True])
async def test_every_connection_of_a_user_is_closed_on_every_process(
    pair: Pair, connect_to: Connect, reconnect: bool
) -> None:
    name = unique("user")
    mine, other = await pair[0].sign_in(name), await pair[0].sign_in(unique("user"))
    connections = [
        await connect_to(server, cookie=mine, protocols=[protocol]) for server in pair for protocol in (EXTENDED, BASE)
    ]
    others = [await connect_to(server, cookie=cookie) for server in pair for cookie in (other, "")]
    await pair[1].call("disconnect_user", name, reconnect=reconnect)
    for client in connections:
        await expect_disconnect(client, reconnect=reconnect)
    for client in others:
        await client.nothing()


async def test_disconnect_may_be_called_in_any_process(pair: Pair, connect_to: Connect) -> None:
    # A task worker and `manage.py shell` are examples of such processes.
    name = unique("user")
    client = await connect_to(pair[0], cookie=await pair[0].sign_in(name))
    with OtherProcess(pair[1]) as worker:
        await worker.call("disconnect_user", name)
    await expect_disconnect(client, reconnect=False)


async def test_a_disconnect_takes_effect_after_the_commit_or_never(pair: Pair, connect_to: Connect) -> None:
    name = unique("user")
    client = await connect_to(pair[0], cookie=await pair[0].sign_in(name))
    await pair[1].call("disconnect_user", name, commit=False)
    await client.nothing()
    await pair[1].call("disconnect_user", name)
    await expect_disconnect(client, reconnect=False)


async def test_disconnected_sessions_with_and_without_a_connection_are_not_restored(
    pair: Pair, connect_to: Connect
) -> None:
    name = unique("user")
    cookie = await pair[0].sign_in(name)
    away, connected = await connect_to(pair[0], cookie=cookie), await connect_to(pair[1], cookie=cookie)
    identifiers = [await subscribe(client) for client in (away, connected)]
    await away.cut()
    await pair[1].call("disconnect_user", name)
    await expect_disconnect(connected, reconnect=False)
    for server in pair:
        for client in (away, connected):
            reconnected = await connect_afterwards(server, cookie=cookie, sid=client.sid)
            assert "restored" not in reconnected.welcome
            await reconnected.close()
    assert len(set(identifiers)) == 2


async def test_a_disconnected_session_of_a_killed_process_is_not_restored(pair: Pair, connect_to: Connect) -> None:
    name = unique("user")
    cookie = await pair[0].sign_in(name)
    former = await connect_to(pair[0], cookie=cookie)
    await subscribe(former)
    pair[0].kill()
    await pair[1].call("disconnect_user", name)
    reconnected = await connect_afterwards(pair[1], cookie=cookie, sid=former.sid)
    assert "restored" not in reconnected.welcome
    await reconnected.close()


async def test_a_session_begun_after_a_disconnect_can_be_restored(pair: Pair, connect_to: Connect) -> None:
    name = unique("user")
    cookie = await pair[0].sign_in(name)
    await pair[0].call("disconnect_user", name)
    client = await connect_afterwards(pair[0], cookie=cookie)
    identifier = await subscribe(client)
    await client.cut()
    reconnected = await connect_to(pair[1], cookie=cookie, sid=client.sid)
    await resume(reconnected, identifier)
    await check_works(reconnected, identifier)


async def test_a_suspended_process_closes_the_connections_when_it_continues(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    name = unique("user")
    cookie = await first.sign_in(name)
    client = await connect_to(first, cookie=cookie)
    identifier = await subscribe(client)
    await suspend(first, second)
    await second.call("disconnect_user", name)
    moved = await connect_afterwards(second, cookie=cookie, sid=client.sid)
    assert "restored" not in moved.welcome
    first.signal(signal.SIGCONT)
    await expect_disconnect(client, reconnect=False)
    await moved.subscribe(identifier)
    await moved.close()


async def test_logging_out_closes_all_devices_and_those_that_are_still_logged_in_reconnect(
    pair: Pair, connect_to: Connect
) -> None:
    first, second = pair
    name = unique("user")
    cookies = [await first.sign_in(name), await first.sign_in(name)]
    devices = [await connect_to(first, cookie=cookies[0]), await connect_to(second, cookie=cookies[1])]
    for device in devices:
        await subscribe(device)
    await first.sign_out(cookies[0])
    for device in devices:
        await expect_disconnect(device, reconnect=True)
    # The device that logged out reconnects as an anonymous user. The `connect` of an application could refuse it.
    for device, cookie, username in zip(devices, cookies, ["", name], strict=True):
        reconnected = await connect_afterwards(second, cookie=cookie, sid=device.sid)
        assert "restored" not in reconnected.welcome
        identifier = await reconnected.subscribe(identify("EchoChannel"))
        await reconnected.perform(identifier, "whoami")
        assert await reconnected.messages(identifier, 1) == [{"user": username or None}]
        await reconnected.close()


async def test_logging_out_an_anonymous_user_closes_no_connection(pair: Pair, connect_to: Connect) -> None:
    client = await connect_to(pair[0])
    await pair[0].sign_out("")
    await client.nothing()
