"""`disconnect()` and logging out: every connection of a user, on every process, and every session that was away."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

from tests.conformance.conftest import Connect, Pair, stand_still
from tests.conformance.test_takeover import resume, subscribe, works
from tests.support.client import BASE, EXTENDED, Client, identify, unique
from tests.support.server import OtherProcess, Server

#: Seconds by which clocks may differ (sessions.base.CLOCK_MARGIN), and a little.
MARGIN = 1.05


async def farewell(client: Client, *, reconnect: bool) -> None:
    """Expect to be sent away, and to be told so in the last frame."""
    await client.until({"type": "disconnect"})
    await client.closed()
    assert client.log[-1] == {"type": "disconnect", "reason": "remote", "reconnect": reconnect}


async def come_back(server: Server, **options: Any) -> Client:
    """Return a connection that was authenticated afterwards, beyond doubt: clocks may differ by a second."""
    await asyncio.sleep(MARGIN)
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
        await farewell(client, reconnect=reconnect)
    for client in others:
        await client.nothing()


async def test_it_may_be_called_in_any_process(pair: Pair, connect_to: Connect) -> None:
    # A task worker, or `manage.py shell`.
    name = unique("user")
    client = await connect_to(pair[0], cookie=await pair[0].sign_in(name))
    with OtherProcess(pair[1]) as worker:
        await worker.call("disconnect_user", name)
    await farewell(client, reconnect=False)


async def test_it_happens_after_the_commit_or_never(pair: Pair, connect_to: Connect) -> None:
    name = unique("user")
    client = await connect_to(pair[0], cookie=await pair[0].sign_in(name))
    await pair[1].call("disconnect_user", name, commit=False)
    await client.nothing()
    await pair[1].call("disconnect_user", name)
    await farewell(client, reconnect=False)


async def test_a_session_that_was_sent_away_or_was_away_is_not_restored(pair: Pair, connect_to: Connect) -> None:
    name = unique("user")
    cookie = await pair[0].sign_in(name)
    away, there = await connect_to(pair[0], cookie=cookie), await connect_to(pair[1], cookie=cookie)
    identifiers = [await subscribe(client) for client in (away, there)]
    await away.cut()
    await pair[1].call("disconnect_user", name)
    await farewell(there, reconnect=False)
    for server in pair:
        for client in (away, there):
            again = await come_back(server, cookie=cookie, sid=client.sid)
            assert "restored" not in again.welcome
            await again.close()
    assert len(set(identifiers)) == 2


async def test_nor_is_one_whose_process_died(pair: Pair, connect_to: Connect) -> None:
    name = unique("user")
    cookie = await pair[0].sign_in(name)
    former = await connect_to(pair[0], cookie=cookie)
    await subscribe(former)
    pair[0].kill()
    await pair[1].call("disconnect_user", name)
    again = await come_back(pair[1], cookie=cookie, sid=former.sid)
    assert "restored" not in again.welcome
    await again.close()


async def test_what_comes_afterwards_is_a_session_as_any_other(pair: Pair, connect_to: Connect) -> None:
    name = unique("user")
    cookie = await pair[0].sign_in(name)
    await pair[0].call("disconnect_user", name)
    client = await come_back(pair[0], cookie=cookie)
    identifier = await subscribe(client)
    await client.cut()
    again = await connect_to(pair[1], cookie=cookie, sid=client.sid)
    await resume(again, identifier)
    await works(again, identifier)


async def test_a_process_that_stood_still_obeys_when_it_goes_on(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    name = unique("user")
    cookie = await first.sign_in(name)
    client = await connect_to(first, cookie=cookie)
    identifier = await subscribe(client)
    await stand_still(first, second)
    await second.call("disconnect_user", name)
    moved = await come_back(second, cookie=cookie, sid=client.sid)
    assert "restored" not in moved.welcome
    first.signal(signal.SIGCONT)
    await farewell(client, reconnect=False)
    await moved.subscribe(identifier)
    await moved.close()


async def test_logging_out_ends_all_devices_and_lets_those_that_are_still_logged_in_come_back(
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
        await farewell(device, reconnect=True)
    # Who logged out comes back as nobody; the application's `connect` might refuse it.
    for device, cookie, username in zip(devices, cookies, ["", name], strict=True):
        back = await come_back(second, cookie=cookie, sid=device.sid)
        assert "restored" not in back.welcome
        identifier = await back.subscribe(identify("EchoChannel"))
        await back.perform(identifier, "whoami")
        assert await back.messages(identifier, 1) == [{"user": username or None}]
        await back.close()


async def test_logging_out_nobody_ends_nothing(pair: Pair, connect_to: Connect) -> None:
    client = await connect_to(pair[0])
    await pair[0].sign_out("")
    await client.nothing()
