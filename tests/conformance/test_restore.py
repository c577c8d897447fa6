"""Restoring a session (see Protocol: Restore)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import BASE, Client, Frame, identify, unique
from tests.support.fixtures import KINDS
from tests.support.server import Kind, Server, ServerPool


def history_after(*frames: Frame) -> dict[str, Any]:
    """Return the history request of a client that received these messages last."""
    return {"streams": {frame["stream_id"]: {"epoch": frame["epoch"], "offset": frame["offset"]} for frame in frames}}


async def test_a_session_is_restored_with_its_subscriptions_and_missed_messages(
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
    assert client.sid != former.sid, "each welcome carries a new session id"
    await client.send("history", identifier, history=history_after(last))
    assert [frame["offset"] for frame in [await client.next() for _ in range(3)]] == [2, 3, 4]
    await client.expect({"type": "confirm_history", "identifier": identifier})
    await server.call("broadcast", stream, {"n": 5})
    await client.expect({"message": {"n": 5}, "offset": 5, "stream_id": stream})
    await client.nothing()


async def test_the_header_names_the_session_too(connect: Connect) -> None:
    former = await connect()
    identifier = await former.subscribe(identify("EchoChannel"))
    await former.cut()
    client = await connect(headers={"X-ANYCABLE-RESTORE-SID": former.sid})
    assert client.welcome["restored_ids"] == [identifier]


async def test_restored_ids_is_present_even_if_it_is_empty(connect: Connect) -> None:
    # Without `restored_ids`, the client assumes that all of its identifiers were restored.
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


async def test_a_session_can_be_restored_repeatedly(connect: Connect, server: Server) -> None:
    stream = unique("restored")
    client = await connect()
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream]))
    last = None
    for number in range(1, 5):
        await server.call("broadcast", stream, {"n": number})
        if last is not None:
            await client.send("history", identifier, history=history_after(last))
        # The message is part of the replay, or follows it if it reaches the server later. It must arrive once.
        frames = sorted([await client.next() for _ in range(min(number, 2))], key=lambda frame: "message" in frame)
        last = frames.pop()
        assert (last["message"], last["offset"]) == ({"n": number}, number)
        assert [frame["type"] for frame in frames] == ["confirm_history"] * (number > 1)
        await client.nothing()
        await client.cut()
        client = await connect(sid=client.sid)
        assert client.welcome["restored_ids"] == [identifier]


async def test_live_messages_wait_for_the_history_of_their_identifier(connect: Connect, server: Server) -> None:
    # If a live message were sent before the history, the client's position would move past the missed messages.
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
    # The message is part of the replay, or follows it if it reaches the server later.
    frames = sorted([await client.next(), await client.next()], key=lambda frame: "message" in frame)
    assert frames[0] == {"type": "confirm_history", "identifier": second}
    assert (frames[1]["identifier"], frames[1]["message"]) == (second, {"n": 1})
    await client.nothing()
    await client.send("history", first, history=history_after(last))
    assert await client.messages(first, 2) == [{"n": 2}, {"n": 3}]
    await client.expect({"type": "confirm_history", "identifier": first})


async def test_a_stream_without_a_position_is_replayed_from_the_start_of_the_subscription(
    connect: Connect, server: Server
) -> None:
    # With `since` alone, a client whose clock is fast would lose these messages.
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
    await client.send("history", identifier, history=history_after(last))
    assert await client.next() == {"type": "reject_history", "identifier": identifier}
    await server.call("count_up", stream, 21, 21)
    await client.expect({"offset": 21})


async def test_a_subscribe_for_a_restored_identifier_is_confirmed_once(connect: Connect, server: Server) -> None:
    # If a page unsubscribes while its client is offline, the client sends nothing. So the server restores the
    # subscription, and the page may subscribe again.
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
    # The declared state is restored, and `resubscribed` may transmit.
    await client.expect({"identifier": identifier, "message": {"count": 2}})
    await client.send("history", identifier)
    await client.expect({"type": "confirm_history"})
    await client.perform(identifier, "increment")
    await client.expect({"message": {"count": 3}})
    await client.send("unsubscribe", identifier)
    await client.perform(identifier, "increment")
    await client.nothing()


@pytest.mark.parametrize("params", [{"fickle": True}, {"raises": True}])
async def test_a_subscription_whose_resubscribed_rejects_or_raises_is_not_restored(
    connect: Connect, server: Server, params: dict[str, bool]
) -> None:
    stream = unique("restored")
    former = await connect()
    rejected = await former.subscribe(identify("AuditedChannel", audit=unique("audit"), streams=[stream], **params))
    restored = await former.subscribe(identify("EchoChannel"))
    await former.cut()
    client = await connect(sid=former.sid)
    assert client.welcome["restored_ids"] == [restored]
    # The subscription must not stay live on the server.
    await server.call("broadcast", stream, {"n": 1})
    await client.nothing()
    await client.subscribe(rejected)


async def test_a_subscription_that_would_be_rejected_now_is_not_restored(connect: Connect, server: Server) -> None:
    stream = unique("rights")
    await server.call("allow", stream)
    former = await connect()
    identifier = await former.subscribe(identify("RightsChannel", streams=[stream]))
    await former.expect({"type": "presence"})
    kept = await former.subscribe(identify("EchoChannel"))
    await former.cut()
    await server.call("forbid", stream)
    client = await connect(sid=former.sid)
    assert client.welcome["restored_ids"] == [kept]
    await client.send("history", identifier)
    await server.call("broadcast", stream, {"n": 1})
    await client.nothing()
    await client.send("subscribe", identifier)
    await client.expect({"type": "reject_subscription", "identifier": identifier})


async def test_a_restored_subscription_has_the_streams_that_are_allowed_now(connect: Connect, server: Server) -> None:
    kept, lost, new, opened = (unique("rights") for _ in range(4))
    for stream in (kept, lost):
        await server.call("allow", stream)
    former = await connect()
    identifier = await former.subscribe(identify("RightsChannel", streams=[kept, lost, new]))
    await former.expect({"type": "presence"})
    await former.perform(identifier, "start", stream=opened)
    await former.expect({"message": {"started": opened}})
    await former.perform(identifier, "increment")
    await former.expect({"message": {"count": 1}})
    await server.call("broadcast", kept, {"n": 1})
    last = await former.expect({"message": {"n": 1}})
    await former.cut()
    await server.call("forbid", lost)
    await server.call("allow", new)
    for stream in (kept, lost, new, opened):
        await server.call("broadcast", stream, {"stream": stream, "n": 2})
    client = await connect(sid=former.sid)
    assert client.welcome["restored_ids"] == [identifier]
    await client.send("history", identifier, history=history_after(last))
    missed = await client.until({"type": "confirm_history", "identifier": identifier})
    assert {frame["message"]["stream"] for frame in missed[:-1]} == {kept, opened}
    for stream in (lost, new, opened):
        await server.call("broadcast", stream, {"stream": stream, "n": 3})
    assert {frame["message"]["stream"] for frame in [await client.next(), await client.next()]} == {new, opened}
    await client.perform(identifier, "increment")
    await client.expect({"message": {"count": 2}})
    await client.nothing()


async def test_transmissions_of_subscribed_follow_the_welcome(connect: Connect) -> None:
    former = await connect()
    await former.send("subscribe", identifier := identify("GreetingChannel", stream=unique("restored")))
    await former.until({"type": "confirm_subscription"})
    await former.cut()
    client = await connect(sid=former.sid)
    assert client.welcome["restored_ids"] == [identifier]
    assert await client.messages(identifier, 2) == [{"greeting": 1}, {"greeting": 2}]
    await client.send("history", identifier)
    await client.expect({"type": "confirm_history"})


async def test_a_member_that_subscribed_joins_again_is_announced_once(connect: Connect, server: Server) -> None:
    stream = unique("rights")
    await server.call("allow", stream)
    watcher = await connect()
    watching = await watcher.subscribe(identify("RightsChannel", streams=[stream], id="watcher"))
    await watcher.expect({"type": "presence", "message": {"type": "join", "id": "watcher"}})
    former = await connect()
    identifier = await former.subscribe(identify("RightsChannel", streams=[stream], id="ann"))
    await watcher.expect({"type": "presence", "message": {"type": "join", "id": "ann"}})
    await former.cut()
    client = await connect(sid=former.sid)
    await client.send("history", identifier)
    await client.expect({"type": "confirm_history"})
    await server.call("broadcast", stream, {"n": 1})
    await client.expect({"message": {"n": 1}})
    assert sorted(await server.call("who_is_there", stream)) == ["ann", "watcher"]
    await watcher.perform(watching, "increment")
    assert [frame["message"] for frame in await watcher.until({"message": {"count": 1}})] == [{"n": 1}, {"count": 1}]


async def test_the_session_of_another_user_is_not_restored(connect: Connect, server: Server) -> None:
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
    assert owner.welcome["restored_ids"] == [identifier], "the user is the same, although the login is another one"


async def test_a_refused_connection_is_not_restored(connect: Connect, server: Server) -> None:
    former = await connect()
    await former.subscribe(identify("EchoChannel"))
    await former.cut()
    client = Client(server.url, cookie=await server.sign_in("outcast"), sid=former.sid)
    await client.open()
    await client.expect({"type": "disconnect", "reason": "unauthorized"})
    await client.closed()
    await client.close()


async def test_the_base_protocol_is_never_restored(connect: Connect, server: Server) -> None:
    # Base clients may send `?sid=`, too.
    stream = unique("restored")
    extended = await connect()
    await extended.subscribe(identify("StreamChannel", streams=[stream]))
    await extended.cut()
    base = await connect(protocols=[BASE], sid=extended.sid)
    assert "restored" not in base.welcome
    await server.call("broadcast", stream, {"n": 1})
    await base.subscribe(identify("EchoChannel"))
    reconnected = await connect(protocols=[BASE], sid=str(base.welcome.get("sid", "none")))
    assert "restored" not in reconnected.welcome


async def test_a_session_is_restored_although_its_former_connection_is_still_open(
    connect: Connect, server: Server
) -> None:
    # The network failed without a TCP reset, so the server still considers the former connection open.
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
        await client.send("history", identifier, history=history_after(last[identifier]))
        frame = await client.expect({"identifier": identifier, "message": {"n": 2}})
        assert frame["stream_id"] == last[identifier]["stream_id"]
        await client.expect({"type": "confirm_history"})
    await client.nothing()


async def test_a_restored_connection_is_closed_if_the_client_requests_no_history(servers: ServerPool) -> None:
    # The server closes the connection after 10 s and without a `disconnect` frame, so that the client keeps its
    # session.
    async def scenario(server: Server) -> None:
        async with Client(server.url) as former:
            identifier = await former.subscribe(identify("EchoChannel"))
            await former.cut()
        async with Client(server.url, sid=former.sid) as client:
            await client.closed(timeout=15)
            assert [frame["type"] for frame in client.log] == ["welcome"]
        async with Client(server.url, sid=client.sid) as reconnected:
            assert reconnected.welcome["restored_ids"] == [identifier]

    # Wait for both servers at the same time.
    await asyncio.gather(*(scenario(servers.get(kind)) for kind in KINDS))


async def test_a_session_survives_a_restart_of_the_server(servers: ServerPool, kind: Kind) -> None:
    stream = unique("restored")
    with servers.make(kind) as server:
        former = Client(server.url)
        async with former:
            identifier = await former.subscribe(identify("StreamChannel", streams=[stream]))
            await server.call("broadcast", stream, {"n": 1})
            last = await former.next()
            assert await server.terminate() in (0, -15)
            assert await former.closed() == 1000, "the server must close with the normal code"
        await server.restart()
        await server.call("broadcast", stream, {"n": 2})
        async with Client(server.url, sid=former.sid) as client:
            assert client.welcome["restored_ids"] == [identifier]
            await client.send("history", identifier, history=history_after(last))
            assert await client.messages(identifier, 1) == [{"n": 2}]
            await client.expect({"type": "confirm_history"})


async def test_without_a_ttl_no_session_is_restored(servers: ServerPool, kind: Kind) -> None:
    server = servers.get(kind, SESSIONS_TTL=0, MAX_PENDING_SIZE=200_000)
    async with Client(server.url) as former:
        await former.subscribe(identify("EchoChannel"))
        sid = former.sid
    async with Client(server.url, sid=sid) as client:
        assert "restored" not in client.welcome
