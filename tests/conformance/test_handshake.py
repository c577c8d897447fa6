"""Handshake, welcome, pings and pongs (see Protocol: Handshake and Protocol: Heartbeat)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from websockets.exceptions import InvalidStatus, NegotiationError

from tests.conformance.conftest import Connect
from tests.support.client import BASE, EXTENDED, PATIENCE, Client, identify
from tests.support.server import Server


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([EXTENDED], EXTENDED),
        ([BASE], BASE),
        ([BASE, EXTENDED], EXTENDED),
        ([BASE, "actioncable-unsupported"], BASE),
        (["actioncable-v1-ext-msgpack", EXTENDED, BASE], EXTENDED),
    ],
)
async def test_the_best_subprotocol_in_common_is_chosen(connect: Connect, offered: list[str], chosen: str) -> None:
    client = await connect(protocols=offered)
    assert client.socket.subprotocol == chosen


@pytest.mark.parametrize("offered", [["soap"], ["actioncable-unsupported"], []])
async def test_a_client_without_a_subprotocol_in_common_is_refused(server: Server, offered: list[str]) -> None:
    with pytest.raises((InvalidStatus, NegotiationError)) as refusal:
        await Client(server.url, protocols=offered).open()
    if isinstance(refusal.value, InvalidStatus):
        assert refusal.value.response.status_code == 403


async def test_a_page_of_another_origin_is_refused(server: Server) -> None:
    with pytest.raises(InvalidStatus):
        await Client(server.url, origin="http://elsewhere.example").open()


async def test_an_extended_client_is_welcomed_with_a_new_secret_session_id(connect: Connect) -> None:
    first, second = await connect(), await connect()
    assert set(first.welcome) == {"type", "sid"}
    assert first.sid != second.sid
    assert len(first.sid) >= 22, "the session id must have at least 128 bits"


async def test_a_base_client_is_welcomed_without_a_restore(connect: Connect) -> None:
    client = await connect(protocols=[BASE])
    assert client.welcome["type"] == "welcome"
    assert "restored" not in client.welcome


async def test_a_connection_that_the_application_refuses_gets_unauthorized(server: Server) -> None:
    client = Client(server.url, cookie=await server.sign_in("outcast"))
    await client.open()
    try:
        assert await client.next() == {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
        await client.closed()
        assert len(client.log) == 1, "the disconnect frame must be the only one"
    finally:
        await client.close()


async def test_a_client_whose_token_has_expired_is_told_so(server: Server) -> None:
    client = Client(server.url, query="token=expired")
    await client.open()
    try:
        assert await client.next() == {"type": "disconnect", "reason": "token_expired", "reconnect": False}
        assert await client.closed() == 1000
        assert len(client.log) == 1, "the disconnect frame must be the only one"
    finally:
        await client.close()


async def test_pings_carry_the_time_and_the_first_ping_is_jittered(strict: Server) -> None:
    spread = fastest = duration = 0.0
    async with asyncio.timeout(PATIENCE):
        # Without jitter, all first pings come at about the same time. With jitter, this happens in one of nine rounds,
        # and the test begins again. It also does so if the machine was blocked, so that pings came late.
        while spread < 0.15 or fastest > 0.9 or duration > 1.5:
            async with AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(Client(strict.url)) for _ in range(6)]
                times = [await client.ping(3) for client in clients]
            assert all(isinstance(message, int) for client in clients for _, message in client.pings)
            # The interval is 0.3 s: the first ping comes after 0.15 to 0.45 s. No ping may be early. A busy machine
            # may delay pings, so only the fastest client must get them in time.
            for each in times:
                assert all(moment > 0.14 + 0.29 * count for count, moment in enumerate(each)), times
            fastest = min(first for first, *_ in times)
            spread = max(first for first, *_ in times) - fastest
            duration = min(each[2] - each[0] for each in times)


async def test_a_client_can_ask_for_another_ping_interval(connect: Connect, strict: Server) -> None:
    async with Client(strict.url, query="pi=0.01") as bounded, Client(strict.url, query="pi=never") as odd:
        assert (await bounded.ping(1))[0] > 0.49, "the server must not grant an interval below one second"
        # The server must ignore a value that is not a number. This client then gets more than three times as many
        # pings. With the same interval, it would never be three pings ahead.
        async with asyncio.timeout(PATIENCE):
            while len(odd.pings) < len(bounded.pings) + 3:
                assert odd.alive
                await odd.ping(len(odd.pings) + 1)
    # The first ping comes after 0.5 to 1.5 s, the next one after another second. With the server's own interval, both
    # would come in the first second. If a busy machine has delayed them, the test is repeated with another client.
    async with asyncio.timeout(PATIENCE):
        gap = 2.0
        while gap > 1.6:
            first, second = await (await connect(query="pi=1")).ping(2)
            assert first > 0.49
            assert second > 1.49
            gap = second - first


async def test_a_clients_ping_is_answered(connect: Connect) -> None:
    client = await connect()
    await client.send("ping")
    await client.expect({"type": "pong"})


async def test_only_a_client_that_stops_sending_pongs_is_disconnected(strict: Server) -> None:
    # The npm client sends no pongs by default, so a client that never sent one stays (see Protocol: Heartbeat).
    async with Client(strict.url) as mute, Client(strict.url) as silent, Client(strict.url, protocols=[BASE]) as base:
        await silent.send("pong")
        await base.send("pong")
        await silent.closed()
        assert [frame["type"] for frame in silent.log] == ["welcome"], "an extended client must get no disconnect frame"
        await base.expect({"type": "disconnect", "reason": "no_pong", "reconnect": True})
        await base.closed()
        await mute.subscribe(identify("EchoChannel"))


async def test_a_client_that_keeps_sending_pongs_stays_connected(strict: Server) -> None:
    async with Client(strict.url) as silent, Client(strict.url) as client:
        await silent.send("pong")
        count = 0
        while silent.alive:  # longer than PONG_TIMEOUT
            count += 1
            await client.send("pong")
            await client.ping(count)
        await client.subscribe(identify("EchoChannel"))
