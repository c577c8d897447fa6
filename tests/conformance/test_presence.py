"""Presence on one server (see Protocol: Presence)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import BASE, PATIENCE, Client, identify, unique
from tests.support.server import Kind, Server, ServerPool


def event(type_: str, id_: str, **more: Any) -> dict[str, Any]:
    """Return a pattern that matches a presence event."""
    return {"type": "presence", "message": {"type": type_, "id": id_, **more}}


async def get_members(client: Client, identifier: str) -> dict[str, Any]:
    """Request the members, and return their infos by id. The answer must be the next message."""
    await client.send("presence", identifier)
    message = (await client.expect({"type": "presence", "message": {"type": "info"}}))["message"]
    assert message["total"] == len(message["records"])
    return {record["id"]: record["info"] for record in message["records"]}


async def enter(room: str, member: Client, watcher: Client, name: str = "ann") -> None:
    """Let a client watch a room, and a member subscribe to it. Wait until the watcher has received the join."""
    await watcher.subscribe(room)
    await member.subscribe(room, presence={"id": name, "info": {}})
    await watcher.expect(event("join", name))


async def test_joins_and_leaves_reach_all_subscribers_including_the_member(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    ann, bob = await connect(), await connect()
    await ann.subscribe(room)
    await bob.subscribe(room)
    await ann.send("join", room, presence={"id": "ann", "info": {"name": "Ann"}})
    for client in (ann, bob):
        assert await client.next() == {
            "type": "presence",
            "identifier": room,
            "message": {"type": "join", "id": "ann", "info": {"name": "Ann"}},
        }
    assert await get_members(bob, room) == {"ann": {"name": "Ann"}}
    await ann.send("leave", room)
    for client in (ann, bob):
        frame = await client.next()
        assert frame == {"type": "presence", "identifier": room, "message": {"type": "leave", "id": "ann"}}
    assert await get_members(ann, room) == {}


async def test_neither_join_nor_leave_is_acknowledged(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    client = await connect()
    await client.subscribe(room)
    await client.send("leave", room)
    await client.send("leave", room, presence={"id": "never there"})
    await client.send("join", room, presence={"id": "ann", "info": {}})
    await client.expect(event("join", "ann"))
    await client.nothing()


async def test_a_subscribe_may_carry_the_join(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    client = await connect()
    await client.subscribe(room, presence={"id": "ann", "info": [1]})
    await client.expect(event("join", "ann", info=[1]))
    assert await get_members(client, room) == {"ann": [1]}


async def test_member_ids_are_cast_to_strings(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    client = await connect()
    await client.subscribe(room)
    await client.send("join", room, presence={"id": 42, "info": {}})
    await client.expect(event("join", "42"))
    await client.perform(room, "rename", id=43)
    await client.expect(event("leave", "42"))
    await client.expect(event("join", "43", info=None))


async def test_an_id_joins_with_its_first_session_and_leaves_with_its_last(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    watcher, desk, phone = await connect(), await connect(), await connect()
    for client in (watcher, desk, phone):
        await client.subscribe(room)
    await desk.send("join", room, presence={"id": "ann", "info": {"on": "desk"}})
    await watcher.expect(event("join", "ann"))
    await phone.send("join", room, presence={"id": "ann", "info": {"on": "phone"}})
    await phone.barrier()
    assert await get_members(watcher, room) == {"ann": {"on": "desk"}}, "another connection's info is not changed"
    await desk.send("join", room, presence={"id": "ann", "info": {"on": "desktop"}})
    await desk.barrier()
    assert await get_members(watcher, room) == {"ann": {"on": "desktop"}}, "the record is updated, without an event"
    await desk.send("unsubscribe", room)
    await desk.barrier()
    assert await get_members(watcher, room) == {"ann": {"on": "phone"}}, "a connection takes its info along"
    await watcher.nothing()
    await phone.send("leave", room)
    await watcher.expect(event("leave", "ann"))


async def test_unsubscribe_leaves_at_once(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    watcher, member = await connect(), await connect()
    await enter(room, member, watcher)
    await member.send("unsubscribe", room)
    await watcher.expect(event("leave", "ann"))


async def test_a_member_whose_connection_was_lost_leaves_after_the_presence_ttl(strict: Server) -> None:
    # The member expires, and exactly one leave event is sent.
    room = identify("RoomChannel", room=unique("room"))
    async with Client(strict.url) as watcher, Client(strict.url) as member:
        await enter(room, member, watcher)
        await member.cut()
        await watcher.expect(event("leave", "ann"))
        await watcher.nothing()


async def test_a_member_stays_while_its_connection_is_open(strict: Server) -> None:
    # PRESENCE_TTL is one second here, and the eight pings take longer.
    room = identify("RoomChannel", room=unique("room"))
    async with Client(strict.url) as watcher, Client(strict.url) as member:
        await enter(room, member, watcher)
        await watcher.ping(8)
        assert await get_members(watcher, room) == {"ann": {}}
        await watcher.nothing()


@pytest.mark.parametrize("data", [{"return_records": True}, {}, None])
async def test_presence_is_answered_with_records(connect: Connect, data: Any) -> None:
    room = identify("RoomChannel", room=unique("room"))
    client = await connect()
    await client.subscribe(room, presence={"id": "ann", "info": {"name": "Ann"}})
    await client.expect(event("join", "ann"))
    await client.send("presence", room, **({} if data is None else {"data": data}))
    assert (await client.next())["message"] == {
        "type": "info",
        "total": 1,
        "records": [{"id": "ann", "info": {"name": "Ann"}}],
    }


async def test_presence_is_answered_with_only_the_total_on_request(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    client = await connect()
    await client.subscribe(room, presence={"id": "ann", "info": {}})
    await client.expect(event("join", "ann"))
    await client.send("presence", room, data={"return_records": False})
    assert (await client.next())["message"] == {"type": "info", "total": 1}


async def test_presence_that_cannot_be_served_is_answered_with_an_error(connect: Connect) -> None:
    # In the npm client, a request without an answer waits forever.
    client = await connect()
    without_stream = await client.subscribe(identify("EchoChannel"))
    for identifier in (without_stream, identify("RoomChannel", room="never subscribed")):
        await client.send("presence", identifier)
        assert await client.next() == {"type": "presence", "identifier": identifier, "message": {"type": "error"}}


async def test_clients_join_by_themselves_only_if_the_channel_allows_it(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    plain = identify("StreamChannel", streams=[unique("plain")])
    client = await connect()
    await client.subscribe(room, presence={"id": "impostor", "info": {}})
    await client.send("join", room, presence={"id": "impostor", "info": {}})
    await client.subscribe(plain, presence={"id": "ann", "info": {}})
    await client.send("join", plain, presence={"id": "ann", "info": {}})
    assert await get_members(client, room) == {}
    assert await get_members(client, plain) == {}


async def test_a_handler_joins_and_leaves_on_the_marked_stream(connect: Connect, server: Server) -> None:
    news, lobby = unique("news"), unique("lobby")
    client, other = await connect(), await connect()
    member = await client.subscribe(identify("LobbyChannel", news=news, lobby=lobby, id=7))
    await client.expect(event("join", "7", info={"via": "handler"}))
    guest = await other.subscribe(identify("LobbyChannel", news=unique("news"), lobby=lobby, id=8))
    for each, identifier in ((other, guest), (client, member)):
        await each.expect({"identifier": identifier, **event("join", "8")})
    assert set(await get_members(client, member)) == {"7", "8"}
    news_only = await other.subscribe(identify("StreamChannel", streams=[news]))
    assert await get_members(other, news_only) == {}, "the first stream has no members"


async def test_a_handler_can_make_its_member_leave(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    client = await connect()
    await client.subscribe(room)
    await client.perform(room, "rename", id="ann", info={"n": 1})
    await client.expect(event("join", "ann", info={"n": 1}))
    await client.perform(room, "hide")
    await client.expect(event("leave", "ann"))


async def test_base_clients_get_no_presence_events(connect: Connect) -> None:
    room = identify("RoomChannel", room=unique("room"))
    base, member = await connect(protocols=[BASE]), await connect()
    await base.subscribe(room)
    echo = await base.subscribe(identify("EchoChannel"))
    await member.subscribe(room, presence={"id": "ann", "info": {}})
    await member.expect(event("join", "ann"))
    await base.perform(echo, "echo", n=1)
    await base.expect({"identifier": echo})


async def test_after_a_restore_joins_and_leaves_correct_the_member_list(connect: Connect) -> None:
    # The client keeps its former member list, and ignores an `info` that it did not request.
    room = identify("RoomChannel", room=unique("room"))
    former, stays, leaves = await connect(), await connect(), await connect()
    for client, name in ((former, "watcher"), (stays, "stays"), (leaves, "leaves")):
        await client.subscribe(room, presence={"id": name, "info": {}})
    while "leaves" not in (known := await read_members(former, room)):
        pass
    await former.cut()
    await leaves.send("unsubscribe", room)
    await leaves.barrier()
    comes = await connect()
    await comes.subscribe(room, presence={"id": "comes", "info": {"new": True}})
    client = await connect(sid=former.sid)
    assert client.welcome["restored_ids"] == [room]
    await client.send("history", room, history={"streams": {}})
    await client.send("join", room, presence={"id": "watcher", "info": {}})
    frames = await client.until(lambda frame: "comes" in str(frame))
    frames += await client.barrier()
    for frame in frames:
        message = frame.get("message", {})
        if message.get("type") == "join":
            known[message["id"]] = message["info"]
        elif message.get("type") == "leave":
            known.pop(message["id"], None)
    assert known == {"watcher": {}, "stays": {}, "comes": {"new": True}}
    await stays.until(event("join", "comes"))
    assert not [frame for frame in stays.log if frame.get("message") == {"type": "leave", "id": "watcher"}]


async def read_members(client: Client, identifier: str) -> dict[str, Any]:
    """Request the members, and return their infos by id. Other messages may precede the answer."""
    await client.send("presence", identifier)
    message = (await client.until({"type": "presence", "message": {"type": "info"}}))[-1]["message"]
    return {record["id"]: record["info"] for record in message["records"]}


async def wait_for_members(client: Client, identifier: str, expected: dict[str, Any]) -> None:
    """Request the members until they are right. Joins and leaves of other connections may not be stored yet."""
    async with asyncio.timeout(PATIENCE):
        while await read_members(client, identifier) != expected:
            await client.barrier()


async def test_the_server_rejoins_a_member_that_a_handler_joined(servers: ServerPool, kind: Kind) -> None:
    # The client sends `join` again only for members that it joined itself. So the server must keep this member
    # present when PRESENCE_TTL is over.
    server, lobby = servers.get(kind, PRESENCE_TTL=3), unique("lobby")
    async with AsyncExitStack() as stack:
        watcher = await stack.enter_async_context(Client(server.url))
        identifier = await watcher.subscribe(identify("RoomChannel", room=lobby))
        lost = await stack.enter_async_context(Client(server.url))
        await lost.subscribe(identifier, presence={"id": "lost", "info": {}})
        await watcher.expect(event("join", "lost"))
        former = await stack.enter_async_context(Client(server.url))
        member = await former.subscribe(identify("LobbyChannel", news=unique("news"), lobby=lobby, id=7))
        await watcher.expect(event("join", "7"))
        await former.cut()
        client = await stack.enter_async_context(Client(server.url, sid=former.sid))
        assert client.welcome["restored_ids"] == [member]
        await client.send("history", member, history={"streams": {}})
        await client.until({"type": "confirm_history"})
        # This member is lost later, so when it has left, the PRESENCE_TTL of the former connection is over, too.
        await lost.cut()
        await watcher.expect(event("leave", "lost"))
        assert await get_members(watcher, identifier) == {"7": {"via": "handler"}}
        await watcher.nothing()


async def test_a_client_that_returns_still_has_the_first_info_of_its_id(server: Server) -> None:
    room = identify("RoomChannel", room=unique("room"))
    async with Client(server.url) as former, Client(server.url) as impostor:
        await former.subscribe(room, presence={"id": "ann", "info": {"name": "Ann"}})
        await former.barrier()
        await impostor.subscribe(room, presence={"id": "ann", "info": {"name": "Mallory"}})
        await former.cut()
        async with Client(server.url, sid=former.sid) as client:
            await client.send("history", room, history={"streams": {}})
            await client.until({"type": "confirm_history"})
            await client.send("join", room, presence={"id": "ann", "info": {"name": "Ann"}})
            await wait_for_members(client, room, {"ann": {"name": "Ann"}})
            await client.send("leave", room)
            await wait_for_members(impostor, room, {"ann": {"name": "Mallory"}})


async def test_a_member_that_does_not_return_after_a_server_restart_disappears(servers: ServerPool, kind: Kind) -> None:
    room = identify("RoomChannel", room=unique("room"))
    with servers.make(kind, PRESENCE_TTL=2) as server:
        async with Client(server.url) as former, Client(server.url) as other:
            await other.subscribe(room, presence={"id": "other", "info": {}})
            await former.subscribe(room, presence={"id": "ann", "info": {}})
            await wait_for_members(former, room, {"other": {}, "ann": {}})
            await server.terminate()
        await server.restart()
        async with Client(server.url, sid=former.sid) as client:
            if room not in client.welcome.get("restored_ids", []):  # a busy server may not load the record in time
                await client.subscribe(room, presence={"id": "ann", "info": {}})
                await client.expect(event("join", "ann"))
                assert await get_members(client, room) == {"ann": {}}
            else:
                await client.send("history", room, history={"streams": {}})
                await client.until(event("leave", "other"))


async def test_only_a_member_whose_page_was_closed_leaves_after_the_grace(servers: ServerPool, kind: Kind) -> None:
    room = identify("RoomChannel", room=unique("room"))
    with servers.make(kind, PRESENCE_TTL=60, PRESENCE_GRACE=0.2) as server:
        async with Client(server.url) as watcher, AsyncExitStack() as stack:
            await watcher.subscribe(room)
            members = {}
            for name in ("cut", "closed cleanly", "page closed"):
                members[name] = await stack.enter_async_context(Client(server.url))
                await members[name].subscribe(room, presence={"id": name, "info": {}})
                await watcher.expect(event("join", name))
            await members["cut"].cut()
            await members["closed cleanly"].close()
            await members["page closed"].close(1001)
            await watcher.expect(event("leave", "page closed"))
            assert set(await get_members(watcher, room)) == {"cut", "closed cleanly"}


async def test_the_member_of_a_client_that_was_disconnected_leaves_after_the_grace(
    servers: ServerPool, kind: Kind
) -> None:
    room, name = identify("RoomChannel", room=unique("room")), unique("user")
    with servers.make(kind, PRESENCE_TTL=60, PRESENCE_GRACE=0.2) as server:
        async with Client(server.url) as watcher, Client(server.url, cookie=await server.sign_in(name)) as client:
            await enter(room, client, watcher, name)
            await server.call("disconnect_user", name)
            await watcher.expect(event("leave", name))


@asynccontextmanager
async def closed_page(server: Server, room: str) -> AsyncIterator[tuple[Client, Callable[[], Awaitable[None]]]]:
    """Let a page of ann enter a room, and close it.

    Yields:
        The client of the page, and a function that checks that the clients in the room have received no more events of
        ann, although the grace of her page is over.
    """
    async with Client(server.url) as watcher, Client(server.url) as other:
        await enter(room, other, watcher, "other")
        async with Client(server.url) as page:
            await page.subscribe(room, presence={"id": "ann", "info": {}})
            await watcher.expect(event("join", "ann"))
            await page.close(1001)

        async def check() -> None:
            # The page of `other` is closed after ann's, so when its member has left, ann's page has expired, too.
            await other.close(1001)
            await watcher.expect(event("leave", "other"))
            assert set(await get_members(watcher, room)) == {"ann"}

        yield page, check


async def test_a_reload_causes_no_event(servers: ServerPool, kind: Kind) -> None:
    room = identify("RoomChannel", room=unique("room"))
    with servers.make(kind, PRESENCE_TTL=60, PRESENCE_GRACE=PATIENCE / 2) as server:
        async with closed_page(server, room) as (_, check), Client(server.url) as reloaded:
            await reloaded.subscribe(room, presence={"id": "ann", "info": {}})
            await reloaded.barrier()
            await check()


async def test_a_session_that_is_restored_after_its_page_was_closed_keeps_its_member(
    servers: ServerPool, kind: Kind
) -> None:
    room = identify("RoomChannel", room=unique("room"))
    with servers.make(kind, PRESENCE_TTL=60, PRESENCE_GRACE=PATIENCE / 2) as server:
        async with closed_page(server, room) as (page, check), Client(server.url, sid=page.sid) as again:
            assert again.welcome["restored_ids"] == [room]
            await again.send("history", room, history={"streams": {}})
            await again.send("join", room, presence={"id": "ann", "info": {}})
            await again.until({"type": "confirm_history"})
            await again.barrier()
            await check()


async def test_a_join_without_a_stream_is_an_error(connect: Connect) -> None:
    silent = identify("SilentChannel")
    client = await connect()
    await client.subscribe(silent)
    await client.send("join", silent, presence={"id": "ann", "info": {}})
    await client.expect({"type": "presence", "identifier": silent, "message": {"type": "error"}})
    await client.perform(silent, "appear", **{"$call": "1"})
    await client.expect({"identifier": silent, "message": {"$answer": "1", "error": "failed"}})
    joining = identify("SilentChannel", joins=True)
    await client.send("subscribe", joining)
    await client.expect({"type": "reject_subscription", "identifier": joining})
