"""`revoke()` ends subscriptions in all processes, and in all sessions whose clients are away."""

from __future__ import annotations

import signal

import pytest

from tests.conformance.conftest import Connect, Pair, suspend
from tests.support.client import BASE, EXTENDED, Client, Frame, identify, unique
from tests.support.server import OtherProcess

REASON = "You were removed from the room."


def revocation(identifier: str) -> Frame:
    """Return the message that tells a client of a revocation."""
    return {"identifier": identifier, "message": {"type": "revoked", "reason": REASON}}


async def allowed(pair: Pair) -> str:
    """Return the name of a stream that clients of `RightsChannel` may read."""
    stream = unique("revoked")
    await pair[0].call("allow", stream)
    return stream


async def subscribe(client: Client, stream: str, id_: str = "member") -> str:
    """Subscribe to a stream, and wait until the subscription has answered an action."""
    identifier = identify("RightsChannel", streams=[stream], id=id_)
    await client.send("subscribe", identifier)
    await client.until({"type": "confirm_subscription", "identifier": identifier})
    await client.perform(identifier, "increment")
    await client.until({"identifier": identifier, "message": {"count": 1}})
    return identifier


async def expect_closed(client: Client) -> None:
    """Wait until the connection is closed. Check that no `disconnect` message made the client forget its session."""
    assert await client.closed() == 1000
    assert [frame for frame in client.log if frame.get("type") == "disconnect"] == []


@pytest.mark.parametrize("scope", ["channel", "stream"])
async def test_a_user_loses_a_subscription_on_every_process_and_is_rejected_afterwards(
    pair: Pair, connect_to: Connect, scope: str
) -> None:
    name = unique("user")
    mine, other = await pair[0].sign_in(name), await pair[0].sign_in(unique("user"))
    stream, news = await allowed(pair), unique("news")
    members = [await connect_to(server, cookie=mine) for server in pair]
    base = await connect_to(pair[0], cookie=mine, protocols=[BASE])
    others = [await connect_to(server, cookie=other, protocols=[EXTENDED]) for server in pair]
    kept = [await client.subscribe(identify("StreamChannel", streams=[news])) for client in (*members, base)]
    identifiers = [await subscribe(client, stream) for client in (*members, base, *others)]
    await pair[1].call("forbid", stream)
    options = {"channel": "RightsChannel"} if scope == "channel" else {"stream": stream}
    await pair[1].call("revoke", username=name, reason=REASON, **options)
    for client, identifier in zip((*members, base), identifiers, strict=False):
        await client.until(revocation(identifier))
    await base.until({"type": "reject_subscription", "identifier": identifiers[2]})
    await pair[0].call("broadcast", stream, {"n": 1})
    await pair[0].call("broadcast", news, {"n": 2})
    await base.until({"identifier": kept[2], "message": {"n": 2}})
    for client in others:
        await client.until({"identifier": identifiers[3], "message": {"n": 1}})
    for server, client in zip(reversed(pair), members, strict=True):
        await expect_closed(client)
        returned = await connect_to(server, cookie=mine, sid=client.sid)
        assert returned.welcome["restored_ids"] == [kept[0]]
        await returned.send("subscribe", identifiers[0])
        await returned.until({"type": "reject_subscription", "identifier": identifiers[0]})
    for client in (*members, base):
        assert [frame for frame in client.log if frame.get("message") == {"n": 1}] == []


async def test_a_client_that_is_away_loses_the_subscription(pair: Pair, connect_to: Connect) -> None:
    stream, other = await allowed(pair), await allowed(pair)
    client = await connect_to(pair[0])
    revoked, kept = await subscribe(client, stream), await subscribe(client, other)
    await client.cut()
    with OtherProcess(pair[1]) as worker:
        await worker.call("revoke", stream=stream)
    for server in pair:
        returned = await connect_to(server, sid=client.sid)
        assert returned.welcome["restored_ids"] == [kept]
        await returned.cut()
    assert revoked != kept


async def test_a_subscription_of_a_killed_process_is_not_restored(pair: Pair, connect_to: Connect) -> None:
    stream = await allowed(pair)
    client = await connect_to(pair[0])
    await subscribe(client, stream)
    pair[0].kill()
    await pair[1].call("revoke", stream=stream)
    returned = await connect_to(pair[1], sid=client.sid)
    assert returned.welcome["restored_ids"] == []


async def test_a_suspended_process_ends_the_subscription_when_it_continues(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    stream = await allowed(pair)
    client = await connect_to(first)
    identifier = await subscribe(client, stream)
    await suspend(first, second)
    await second.call("revoke", stream=stream, reason=REASON)
    first.signal(signal.SIGCONT)
    await client.until(revocation(identifier))
    await expect_closed(client)


async def test_the_member_leaves_presence(pair: Pair, connect_to: Connect) -> None:
    stream = await allowed(pair)
    first, second = await pair[0].sign_in(unique("user")), await pair[0].sign_in(name := unique("user"))
    stays, leaves = await connect_to(pair[0], cookie=first), await connect_to(pair[0], cookie=second)
    identifier = await subscribe(stays, stream, "stays")
    await subscribe(leaves, stream, "leaves")
    await stays.until({"type": "presence", "message": {"type": "join", "id": "leaves"}})
    await pair[1].call("revoke", username=name, stream=stream)
    await stays.until({"identifier": identifier, "type": "presence", "message": {"type": "leave", "id": "leaves"}})


async def test_a_client_that_may_subscribe_again_misses_nothing(pair: Pair, connect_to: Connect) -> None:
    stream = await allowed(pair)
    client = await connect_to(pair[0])
    identifier = await subscribe(client, stream)
    await pair[0].call("broadcast", stream, {"n": 1})
    last = (await client.until({"message": {"n": 1}}))[-1]
    await pair[1].call("revoke", stream=stream)
    await expect_closed(client)
    await pair[1].call("broadcast", stream, {"n": 2})
    returned = await connect_to(pair[0], sid=client.sid)
    assert returned.welcome["restored_ids"] == []
    positions = {last["stream_id"]: {"epoch": last["epoch"], "offset": last["offset"]}}
    await returned.send("subscribe", identifier, history={"streams": positions})
    await returned.until({"type": "confirm_subscription", "identifier": identifier})
    await returned.until({"message": {"n": 2}, "offset": 2})
