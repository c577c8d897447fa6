"""If a client itself joined as a member, a restore calls `authorize_presence` again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable import Channel, action
from reliable_cable.channel import registry
from reliable_cable.stores.engine import get_engine

from .wire import Client, identifier, registered, until


class Open(Channel, abstract=True):
    """Lets clients join by themselves."""

    #: The member ids with which clients may join.
    joinable: list[str]

    async def subscribed(self) -> None:
        self.stream_from("a")

    async def authorize_presence(self, id: str, info: Any) -> bool:  # noqa: A002 - the protocol's name
        return id in Open.joinable

    @action
    async def join_as_bob(self) -> None:
        self.presence.join("bob", {})


class Joining(Open, abstract=True):
    """Joins as the member "ann". The client can join as another member."""

    async def subscribed(self) -> None:
        self.stream_from("a")
        self.presence.join("ann", {})


class Kept(Open, abstract=True):
    """Has `resubscribed`, so a restore does not call `subscribed`."""

    async def resubscribed(self) -> None: ...


OPEN = identifier("Open")
CLAIM = {"id": "eve", "info": {}}


@pytest.fixture(autouse=True)
def _open(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}
    Open.joinable = ["eve"]
    with registered(Open=Open):
        yield


def members() -> dict[str, Any]:
    """Return the members of the stream."""
    return dict(get_engine().presence.info("a").records or {})


async def presence_event(client: Client) -> tuple[str, str]:
    """Return the type and the id of the next presence event."""
    while (frame := await client.receive()).get("type") != "presence":
        pass
    return frame["message"]["type"], frame["message"]["id"]


async def begin(*, with_subscribe: bool = False) -> str:
    """Return the session id of a client that joined by itself, by a command or with its `subscribe`."""
    async with Client() as client:
        await client.subscribe(OPEN, **({"presence": CLAIM} if with_subscribe else {}))
        if not with_subscribe:
            await client.send("join", OPEN, presence=CLAIM)
        assert await presence_event(client) == ("join", "eve")
    return client.sid


@pytest.mark.parametrize("how", ["by a command", "with subscribe", "restored before", "with resubscribed"])
async def test_a_member_that_is_not_allowed_any_longer_leaves(how: str) -> None:
    if how == "with resubscribed":
        registry["Open"] = [Kept]
    sid = await begin(with_subscribe=how == "with subscribe")
    if how == "restored before":
        async with Client(sid) as client:
            await client.send("history", OPEN, history={})
            assert (await client.receive())["type"] == "confirm_history"
            assert members() == {"eve": {}}
        sid = client.sid
    Open.joinable = []
    async with Client(sid) as client:
        assert client.welcome["restored_ids"] == [OPEN]
        await client.send("history", OPEN, history={})
        assert await presence_event(client) == ("leave", "eve")
        assert members() == {}


@pytest.mark.parametrize("how", ["by a command", "with subscribe"])
async def test_a_member_whose_client_does_not_join_again_expires(settings: Any, how: str) -> None:
    # The client sent a `leave`, which was lost with the connection. A client that had not left would join again.
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60, "PRESENCE_TTL": 0.1}
    sid = await begin(with_subscribe=how == "with subscribe")
    async with Client(sid) as client:
        assert client.welcome["restored_ids"] == [OPEN]
        await client.send("history", OPEN, history={})
        assert await presence_event(client) == ("leave", "eve")
        sid = client.sid
    async with Client(sid) as client:
        await client.send("history", OPEN, history={})
        assert (await client.receive())["type"] == "confirm_history"
        assert members() == {}


async def test_a_client_that_joins_again_keeps_its_member() -> None:
    async with Client() as other:
        await other.subscribe(OPEN)
        sid = await begin()
        assert await presence_event(other) == ("join", "eve")
        async with Client(sid) as client:
            await client.send("history", OPEN, history={})
            await client.send("join", OPEN, presence=CLAIM)
            assert (await client.receive())["type"] == "confirm_history"
            assert await client.quiet()
            await client.send("leave", OPEN)
            assert await presence_event(other) == ("leave", "eve"), "the member of the former session was replaced"
            assert members() == {}


async def test_a_restored_client_can_leave_without_joining_again() -> None:
    sid = await begin()
    async with Client(sid) as client:
        await client.send("history", OPEN, history={})
        await client.send("leave", OPEN)
        await until(lambda: members() == {})


async def test_a_member_as_which_a_handler_joined_last_stays() -> None:
    async with Client() as former:
        await former.subscribe(OPEN, presence=CLAIM)
        await former.perform(OPEN, "join_as_bob")
        while await presence_event(former) != ("join", "bob"):
            pass
    Open.joinable = []
    async with Client(former.sid) as client:
        await client.send("history", OPEN, history={})
        assert (await client.receive())["type"] == "confirm_history"
        assert members() == {"bob": {}}


async def test_a_member_that_is_not_allowed_any_longer_is_replaced_by_that_of_subscribed() -> None:
    registry["Open"] = [Joining]
    async with Client() as former:
        await former.subscribe(OPEN)
        await former.send("join", OPEN, presence=CLAIM)
        while await presence_event(former) != ("join", "eve"):
            pass
    async with Client(former.sid) as client:
        await client.send("history", OPEN, history={})
        assert (await client.receive())["type"] == "confirm_history"
        assert members() == {"eve": {}}
    Open.joinable = []
    async with Client(client.sid) as client:
        await client.send("history", OPEN, history={})
        while await presence_event(client) != ("join", "ann"):
            pass
        assert members() == {"ann": {}}
