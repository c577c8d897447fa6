"""Servers whose database is PostgreSQL: many subscriptions, and a session cookie that PostgreSQL refuses."""

from __future__ import annotations

import time
from collections.abc import Sequence

import httpx
import pytest

from tests.support.client import Client, identify, unique
from tests.support.server import LOCAL, Kind, ServerPool

pytestmark = pytest.mark.postgres

#: How long, in seconds, the npm client waits for the answer to a `subscribe`.
CLIENT_PATIENCE = 10.0


async def subscribe_at_once(client: Client, identifiers: Sequence[str]) -> float:
    """Send all subscribes before reading any answer. Return the time, in seconds, until the last confirmation."""
    began = time.monotonic()
    for identifier in identifiers:
        await client.send("subscribe", identifier)
    for identifier in identifiers:
        await client.expect({"type": "confirm_subscription", "identifier": identifier})
    return time.monotonic() - began


async def test_eight_hundred_subscribes_are_confirmed_before_the_client_gives_up(
    postgres_servers: ServerPool, kind: Kind
) -> None:
    server = postgres_servers.get(kind, MAX_SUBSCRIPTIONS=2000)
    names = [unique("room") for _ in range(800)]
    identifiers = [identify("StreamChannel", streams=[name]) for name in names]
    async with Client(server.url) as client:
        without_streams = await subscribe_at_once(client, [identify("EchoChannel", name=name) for name in names])
        # On a busy machine, subscribes are slower. The time of subscribes without streams shows by how much.
        assert await subscribe_at_once(client, identifiers) < max(CLIENT_PATIENCE, 30 * without_streams)
        await server.call("broadcast", names[-1], {"n": 1})
        assert await client.messages(identifiers[-1], 1) == [{"n": 1}]


async def test_a_session_cookie_with_a_nul_is_anonymous(postgres_servers: ServerPool, kind: Kind) -> None:
    # With a JWT_SECRET, the project uses the authentication middleware of the package.
    server = postgres_servers.get(kind, JWT_SECRET="of this test", PUBLIC_STREAMS=True)
    cookie = r'sessionid="unknown-session\000key"'
    async with Client(server.url, cookie=cookie) as client:
        echo = await client.subscribe(identify("EchoChannel"))
        await client.perform(echo, "whoami")
        assert await client.messages(echo, 1) == [{"user": None}]
    async with (
        httpx.AsyncClient(**LOCAL, headers={"Cookie": cookie}) as browser,
        browser.stream("GET", f"http://127.0.0.1:{server.port}/events?stream=news") as response,
    ):
        assert response.status_code == 200
