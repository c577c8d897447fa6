"""Connections end when the Django login that authenticated them has ended. See Rights: When a login ends otherwise.

Unless a test sets another interval, servers check logins at the default interval. No test waits
that long, so a connection that ends was closed because of a signal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.conformance.conftest import Connect, Pair
from tests.conformance.test_disconnect import connect_afterwards, expect_disconnect
from tests.conformance.test_takeover import subscribe
from tests.support.client import BASE, EXTENDED, Client, identify, unique
from tests.support.server import Kind, Server, ServerPool

#: The interval of the checks, in seconds. It is so short that tests do not wait for long.
INTERVAL = 0.5


@pytest.fixture
def checking(servers: ServerPool, kind: Kind) -> Server:
    """A server that checks all logins often."""
    return servers.get(kind, REAUTHENTICATE_INTERVAL=INTERVAL)


async def whoami(server: Server, cookie: str, sid: str = "") -> str | None:
    """Connect with a cookie, check that no session is restored, and return the user's name."""
    client = await connect_afterwards(server, cookie=cookie, sid=sid)
    assert "restored" not in client.welcome
    identifier = await client.subscribe(identify("EchoChannel"))
    await client.perform(identifier, "whoami")
    (answer,) = await client.messages(identifier, 1)
    await client.close()
    name: str | None = answer["user"]
    return name


def key_of(cookie: str) -> str:
    """Return the session key in a `Cookie` header."""
    return cookie.partition("=")[2]


class TestAtOnce:
    @pytest.mark.parametrize("change", ["set password", "deactivate", "delete"])
    async def test_a_changed_user_loses_the_connections_on_every_process(
        self, pair: Pair, connect_to: Connect, change: str
    ) -> None:
        name = unique("user")
        mine, other = await pair[0].sign_in(name), await pair[0].sign_in(unique("user"))
        clients = [
            await connect_to(server, cookie=mine, protocols=[protocol])
            for server in pair
            for protocol in (EXTENDED, BASE)
        ]
        others = [await connect_to(server, cookie=cookie) for server in pair for cookie in (other, "")]
        await pair[1].call("change_user", name, change)
        for client in clients:
            await expect_disconnect(client, reconnect=True)
        for client in others:
            await client.nothing()
        assert await whoami(pair[0], mine, clients[0].sid) is None

    async def test_a_user_who_changes_the_password_returns_and_other_browsers_do_not(
        self, pair: Pair, connect_to: Connect
    ) -> None:
        name = unique("user")
        cookies = [await pair[0].sign_in(name), await pair[1].sign_in(name)]
        clients = [await connect_to(server, cookie=cookie) for server in pair for cookie in cookies]
        mine = await pair[0].change_password(cookies[0])
        for client in clients:
            await expect_disconnect(client, reconnect=True)
        assert await whoami(pair[1], mine, clients[0].sid) == name
        assert await whoami(pair[0], cookies[1]) is None

    async def test_another_user_of_the_browser_gets_nothing_of_the_former_one(
        self, pair: Pair, connect_to: Connect
    ) -> None:
        former, later = unique("user"), unique("user")
        cookie, elsewhere = await pair[0].sign_in(former), await pair[0].sign_in(former)
        tabs = [await connect_to(server, cookie=cookie) for server in pair]
        device = await connect_to(pair[1], cookie=elsewhere)
        for tab in tabs:
            await subscribe(tab)
        new = await pair[0].sign_in(later, cookie=cookie)
        for tab in tabs:
            await expect_disconnect(tab, reconnect=True)
        for tab in tabs:
            assert await whoami(pair[1], new, tab.sid) == later
        await device.nothing()


Change = Callable[[Server, str, str], Awaitable[object]]
#: Functions that end a login without a signal. Their arguments are the server, the name of the user and the cookie.
UNANNOUNCED: dict[str, Change] = {
    "the password is updated": lambda server, name, cookie: server.call("change_user", name, "update password"),
    "the user is deactivated": lambda server, name, cookie: server.call("change_user", name, "update is_active"),
    "the session is deleted": lambda server, name, cookie: server.call("delete_session", key_of(cookie)),
}


class TestWithinTheInterval:
    @pytest.mark.parametrize("change", UNANNOUNCED)
    async def test_only_the_logins_that_have_ended_lose_their_connections(
        self, checking: Server, connect_to: Connect, change: str
    ) -> None:
        name = unique("user")
        cookies = [await checking.sign_in(name), await checking.sign_in(unique("user")), ""]
        mine, other, anonymous = [await connect_to(checking, cookie=cookie, query="pi=1") for cookie in cookies]
        await UNANNOUNCED[change](checking, name, cookies[0])
        await expect_disconnect(mine, reconnect=True)
        assert await whoami(checking, cookies[0], mine.sid) is None
        await check_stays(other)
        await check_stays(anonymous)

    async def test_an_expired_session_ends_the_connection(self, checking: Server, connect_to: Connect) -> None:
        cookie = await checking.sign_in(unique("user"), expiry=1)
        client = await connect_to(checking, cookie=cookie)
        await expect_disconnect(client, reconnect=True)
        assert await whoami(checking, cookie) is None


async def check_stays(client: Client) -> None:
    """Check that a connection stays open over several intervals."""
    await client.ping(len(client.pings) + 2)  # one per second
    await client.nothing()
