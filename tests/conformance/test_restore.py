"""Restoring a session (PROTOCOL.md, 5 to 7, 12, 16, 18)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import BASE, Client, Frame, identify, unique
from tests.support.fixtures import KINDS
from tests.support.server import Kind, Server, ServerPool


def asking(*frames: Frame) -> dict[str, Any]:
    """Return the history request of a client that saw these last."""
    return {"streams": {frame["stream_id"]: {"epoch": frame["epoch"], "offset": frame["offset"]} for frame in frames}}


async def test_a_session_comes_back_with_its_subscriptions_and_what_they_missed(
    connect: Connect, server: Server
) -> None:
    stream = unique("restored")
    former = await connect()
    identifier = await former.subscribe(identify("StreamChannel", streams=[stream]))
    await server.call("broadcast", stream, {"n": 1})
    last = await former.expect({"message": {"n": 1}})
    await former.cut()
    await server.call("count_up", stream, 2, 4)
    client = await connect(sid=former.sid)
    assert client.welcome["restored"] is True
    assert client.welcome["restored_ids"] == [identifier]
    assert client.sid != former.sid, "each welcome carries a new one"
    await client.send("history", identifier, history=asking(last))
    assert [frame["offset"] for frame in [await client.next() for _ in range(3)]] == [2, 3, 4]
    await client.expect({"type": "confirm_history", "identifier": identifier})
    await server.call("broadcast", stream, {"n": 5})
    await client.expect({"message": {"n": 5}, "offset": 5, "stream_id": stream})
    await client.nothing()


async def test_the_header_names_the_session_too(connect: Connect) -> None:
    # 18
    former = await connect()
    identifier = await former.subscribe(identify("EchoChannel"))
    await former.cut()
    client = await connect(headers={"X-ANYCABLE-RESTORE-SID": former.sid})
    assert client.welcome["restored_ids"] == [identifier]


async def test_restored_ids_are_there_also_when_empty(connect: Connect) -> None:
    # 6: absent, the client assumes every identifier that it ever had.
    former = await connect()
    identifier = await former.subscribe(identify("EchoChannel"))
    await former.send("unsubscribe", identifier)
    await former.nothing()
    await former.cut()
    client = await connect(sid=former.sid)
    assert client.welcome == {"type": "welcome", "sid": client.sid, "restored": True, "restored_ids": []}


async def test_an_unknown_session_is_welcomed_as_a_new_one(connect: Connect) -> None:
    for sid in ("unknown", "0" * 500, "%00", "é"):
        client = await connect(sid=sid)
        assert set(client.welcome) == {"type", "sid"}


async def test_a_session_can_be_restored_again_and_again(connect: Connect, server: Server) -> None:
    stream = unique("restored")
    client = await connect()
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream]))
    last = None
    for number in range(1, 5):
        await server.call("broadcast", stream, {"n": number})
        if last is not None:
            await client.send("history", identifier, history=asking(last))
        # It is part of the history, or comes after it, if the server hears of it later; in any case once.
        frames = sorted([await client.next() for _ in range(min(number, 2))], key=lambda frame: "message" in frame)
        last = frames.pop()
        assert (last["message"], last["offset"]) == ({"n": number}, number)
        assert [frame["type"] for frame in frames] == ["confirm_history"] * (number > 1)
        await client.nothing()
        await client.cut()
        client = await connect(sid=client.sid)
        assert client.welcome["restored_ids"] == [identifier]


async def test_live_messages_wait_for_the_history_of_their_identifier(connect: Connect, server: Server) -> None:
    # 5: one that came before would advance the client's position past the gap.
    stream, other = unique("restored"), unique("restored")
    former = await connect()
    first = await former.subscribe(identify("StreamChannel", streams=[stream]))
    second = await former.subscribe(identify("StreamChannel", streams=[other]))
    await server.call("broadcast", stream, {"n": 1})
    last = await former.next()
    await former.cut()
    await server.call("broadcast", stream, {"n": 2})
    client = await connect(sid=former.sid)
    await server.call("broadcast", stream, {"n": 3})
    await server.call("broadcast", other, {"n": 1})
    await client.nothing()
    await client.send("history", second, history={"streams": {}})
    # Whether the server has heard of its message by now decides whether it is replayed, or follows.
    frames = sorted([await client.next(), await client.next()], key=lambda frame: "message" in frame)
    assert frames[0] == {"type": "confirm_history", "identifier": second}
    assert (frames[1]["identifier"], frames[1]["message"]) == (second, {"n": 1})
    await client.nothing()
    await client.send("history", first, history=asking(last))
    assert await client.messages(first, 2) == [{"n": 2}, {"n": 3}]
    await client.expect({"type": "confirm_history", "identifier": first})


async def test_a_stream_without_a_position_is_replayed_from_where_the_subscription_stood(
    connect: Connect, server: Server
) -> None:
    # 7: a client whose clock is ahead would lose these by `since` alone.
    stream = unique("restored")
    await server.call("count_up", stream, 1, 2)
    former = await connect()
    identifier = await former.subscribe(identify("StreamChannel", streams=[stream]))
    await former.cut()
    await server.call("count_up", stream, 3, 4)
    client = await connect(sid=former.sid)
    await client.send("history", identifier, history={"since": 4_000_000_000, "streams": {}})
    assert [message["n"] for message in await client.messages(identifier, 2)] == [3, 4]
    await client.expect({"type": "confirm_history", "identifier": identifier})
    await client.nothing()


async def test_a_restored_stream_that_was_trimmed_meanwhile_is_rejected(connect: Connect, server: Server) -> None:
    stream = unique("small:")
    former = await connect()
    identifier = await former.subscribe(identify("StreamChannel", streams=[stream]))
    await server.call("count_up", stream, 1, 1)
    last = await former.next()
    await former.cut()
    await server.call("count_up", stream, 2, 20)
    client = await connect(sid=former.sid)
    await client.send("history", identifier, history=asking(last))
    assert await client.next() == {"type": "reject_history", "identifier": identifier}
    await server.call("count_up", stream, 21, 21)
    await client.expect({"offset": 21})


async def test_a_subscribe_for_a_restored_identifier_is_confirmed_once(connect: Connect, server: Server) -> None:
    # 1: the application may have unsubscribed while it was offline, which sends nothing.
    stream = unique("restored")
    former = await connect()
    identifier = await former.subscribe(identify("StreamChannel", streams=[stream]))
    await former.cut()
    client = await connect(sid=former.sid)
    await client.nothing()
    await client.subscribe(identifier)
    await client.send("subscribe", identifier)
    await client.nothing()
    await server.call("broadcast", stream, {"n": 1})
    assert await client.messages(identifier, 1) == [{"n": 1}]
    await client.nothing()


async def test_a_restored_subscription_can_be_used_and_ended(connect: Connect, server: Server) -> None:
    audit = unique("audit")
    former = await connect()
    identifier = await former.subscribe(identify("AuditedChannel", audit=audit))
    for count in (1, 2):
        await former.perform(identifier, "increment")
        await former.expect({"message": {"count": count}})
    await former.cut()
    client = await connect(sid=former.sid)
    # Declared state is back, and `resubscribed` may transmit.
    await client.expect({"identifier": identifier, "message": {"count": 2}})
    await client.send("history", identifier)
    await client.expect({"type": "confirm_history"})
    await client.perform(identifier, "increment")
    await client.expect({"message": {"count": 3}})
    await client.send("unsubscribe", identifier)
    await client.perform(identifier, "increment")
    await client.nothing()


@pytest.mark.parametrize("params", [{"fickle": True}, {"raises": True}])
async def test_a_channel_that_rejects_its_return_is_not_restored(
    connect: Connect, server: Server, params: dict[str, bool]
) -> None:
    stream = unique("restored")
    former = await connect()
    gone = await former.subscribe(identify("AuditedChannel", audit=unique("audit"), streams=[stream], **params))
    stays = await former.subscribe(identify("EchoChannel"))
    await former.cut()
    client = await connect(sid=former.sid)
    assert client.welcome["restored_ids"] == [stays]
    # 6: it must not stay live on the server.
    await server.call("broadcast", stream, {"n": 1})
    await client.nothing()
    await client.subscribe(gone)


async def test_another_users_session_is_not_given_away(connect: Connect, server: Server) -> None:
    # 18
    alice, mallory = await server.sign_in("alice"), await server.sign_in("mallory")
    stream = unique("private")
    former = await connect(cookie=alice)
    identifier = await former.subscribe(identify("StreamChannel", streams=[stream]))
    await former.cut()
    for cookie in (mallory, ""):
        thief = await connect(cookie=cookie, sid=former.sid)
        assert "restored" not in thief.welcome
        await server.call("broadcast", stream, {"n": 1})
        await thief.nothing()
    owner = await connect(cookie=await server.sign_in("alice"), sid=former.sid)
    assert owner.welcome["restored_ids"] == [identifier], "the same user, in another login session"


async def test_a_refused_connection_gets_no_session_back(connect: Connect, server: Server) -> None:
    former = await connect()
    await former.subscribe(identify("EchoChannel"))
    await former.cut()
    client = Client(server.url, cookie=await server.sign_in("outcast"), sid=former.sid)
    await client.open()
    await client.expect({"type": "disconnect", "reason": "unauthorized"})
    await client.closed()
    await client.close()


async def test_the_base_protocol_is_never_restored(connect: Connect, server: Server) -> None:
    # 16: though it too sends `?sid=`.
    stream = unique("restored")
    extended = await connect()
    await extended.subscribe(identify("StreamChannel", streams=[stream]))
    await extended.cut()
    base = await connect(protocols=[BASE], sid=extended.sid)
    assert "restored" not in base.welcome
    await server.call("broadcast", stream, {"n": 1})
    await base.subscribe(identify("EchoChannel"))
    again = await connect(protocols=[BASE], sid=str(base.welcome.get("sid", "none")))
    assert "restored" not in again.welcome


async def test_a_session_whose_connection_was_not_noticed_dead_is_taken_over(connect: Connect, server: Server) -> None:
    # The network went away without a word: the server believes that the former connection lives.
    stream, audit = unique("restored"), unique("audit")
    former = await connect()
    identifier = await former.subscribe(identify("AuditedChannel", audit=audit, streams=[stream]))
    client = await connect(sid=former.sid)
    assert client.welcome["restored_ids"] == [identifier]
    await former.closed()
    await client.expect({"message": {"count": 0}})
    await client.send("history", identifier)
    await client.expect({"type": "confirm_history"})
    await server.call("broadcast", stream, {"n": 1})
    assert await client.messages(identifier, 1) == [{"n": 1}]
    await client.nothing()


async def test_two_identifiers_on_one_stream_keep_their_stream_ids(connect: Connect, server: Server) -> None:
    # 4
    stream = unique("shared")
    former = await connect()
    identifiers = [await former.subscribe(identify("StreamChannel", streams=[stream], n=n)) for n in range(3)]
    await server.call("broadcast", stream, {"n": 1})
    last = {frame["identifier"]: frame for frame in [await former.next() for _ in identifiers]}
    await former.cut()
    await server.call("broadcast", stream, {"n": 2})
    client = await connect(sid=former.sid)
    assert sorted(client.welcome["restored_ids"]) == sorted(identifiers)
    for identifier in reversed(identifiers):
        await client.send("history", identifier, history=asking(last[identifier]))
        frame = await client.expect({"identifier": identifier, "message": {"n": 2}})
        assert frame["stream_id"] == last[identifier]["stream_id"]
        await client.expect({"type": "confirm_history"})
    await client.nothing()


async def test_a_restored_identifier_whose_history_never_comes_ends_the_connection(servers: ServerPool) -> None:
    # 5: after ten seconds, and without `disconnect`, so that the session stays.
    async def scenario(server: Server) -> None:
        async with Client(server.url) as former:
            identifier = await former.subscribe(identify("EchoChannel"))
            await former.cut()
        async with Client(server.url, sid=former.sid) as client:
            await client.closed(timeout=15)
            assert [frame["type"] for frame in client.log] == ["welcome"]
        async with Client(server.url, sid=client.sid) as again:
            assert again.welcome["restored_ids"] == [identifier]

    # The ten seconds of both servers pass together.
    await asyncio.gather(*(scenario(servers.get(kind)) for kind in KINDS))


async def test_a_session_survives_the_server(servers: ServerPool, kind: Kind) -> None:
    stream = unique("restored")
    with servers.make(kind) as server:
        former = Client(server.url)
        async with former:
            identifier = await former.subscribe(identify("StreamChannel", streams=[stream]))
            await server.call("broadcast", stream, {"n": 1})
            last = await former.next()
            assert await server.terminate() in (0, -15)
            assert await former.closed() == 1000, "a plain close"
        await server.restart()
        await server.call("broadcast", stream, {"n": 2})
        async with Client(server.url, sid=former.sid) as client:
            assert client.welcome["restored_ids"] == [identifier]
            await client.send("history", identifier, history=asking(last))
            assert await client.messages(identifier, 1) == [{"n": 2}]
            await client.expect({"type": "confirm_history"})


async def test_without_a_time_to_live_nothing_is_restored(servers: ServerPool, kind: Kind) -> None:
    server = servers.get(kind, SESSIONS_TTL=0, MAX_PENDING_SIZE=200_000)
    async with Client(server.url) as former:
        await former.subscribe(identify("EchoChannel"))
        sid = former.sid
    async with Client(server.url, sid=sid) as client:
        assert "restored" not in client.welcome
