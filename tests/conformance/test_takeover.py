"""A session goes on in another process than the one that it was left in (PROTOCOL.md, 5 to 7, 12, 18)."""

from __future__ import annotations

import signal

import pytest

from tests.conformance.conftest import Connect, Pair, stand_still
from tests.support.client import Client, Frame, identify, unique


def asking(frame: Frame) -> Frame:
    """Return the history request of a client that saw this last."""
    return {"streams": {frame["stream_id"]: {"epoch": frame["epoch"], "offset": frame["offset"]}}}


async def subscribe(client: Client, *streams: str) -> str:
    """Subscribe to a channel that counts, and count to one: what the client has seen is kept, on every server."""
    identifier = await client.subscribe(identify("AuditedChannel", audit=unique("audit"), streams=streams))
    await client.perform(identifier, "increment")
    await client.expect({"message": {"count": 1}})
    return identifier


async def resume(client: Client, identifier: str, count: int = 1) -> None:
    """Expect a subscription to be back, with its state."""
    assert client.welcome["restored_ids"] == [identifier]
    await client.expect({"identifier": identifier, "message": {"count": count}})
    await client.send("history", identifier)
    await client.expect({"type": "confirm_history"})


async def works(client: Client, identifier: str, count: int = 2) -> None:
    """Count on; expect nothing else."""
    await client.perform(identifier, "increment")
    await client.expect({"identifier": identifier, "message": {"count": count}})
    await client.nothing()


def disconnects(client: Client) -> list[Frame]:
    """Return the farewells that a client got."""
    return [frame for frame in client.log if frame.get("type") == "disconnect"]


@pytest.mark.parametrize("end", ["cut", "kill", "terminate"])
async def test_a_session_comes_back_elsewhere_with_state_and_what_it_missed(
    pair: Pair, connect_to: Connect, end: str
) -> None:
    first, second = pair
    stream = unique("moved")
    former = await connect_to(first)
    identifier = await subscribe(former, stream)
    await first.call("broadcast", stream, {"n": 1})
    last = await former.expect({"message": {"n": 1}})
    if end == "cut":
        await former.cut()
    elif end == "kill":
        first.kill()
    else:
        await first.terminate()
    await second.call("broadcast", stream, {"n": 2})
    client = await connect_to(second, sid=former.sid)
    assert client.welcome["restored_ids"] == [identifier]
    await client.expect({"message": {"count": 1}})
    await client.send("history", identifier, history=asking(last))
    await client.expect({"message": {"n": 2}, "offset": 2})
    await client.expect({"type": "confirm_history"})
    await second.call("broadcast", stream, {"n": 3})
    await client.expect({"message": {"n": 3}, "offset": 3})
    await client.nothing()


async def test_the_state_that_a_client_saw_survives_the_process_however_soon_it_dies(
    pair: Pair, connect_to: Connect
) -> None:
    former = await connect_to(pair[0])
    identifier = await subscribe(former)
    for count in range(1, 5):
        here, there = pair if count % 2 else reversed(pair)
        here.kill()
        client = await connect_to(there, sid=former.sid)
        await resume(client, identifier, count)
        await works(client, identifier, count + 1)
        former = client
        await here.restart()


async def test_so_do_streams_that_an_action_has_started_and_stopped(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    old, new = unique("moved"), unique("moved")
    former = await connect_to(first)
    identifier = await former.subscribe(identify("StreamChannel", streams=[old]))
    await former.perform(identifier, "start", stream=new)
    await former.expect({"message": {"started": new}})
    await former.perform(identifier, "stop", stream=old)
    await former.expect({"message": {"stopped": old}})
    first.kill()
    client = await connect_to(second, sid=former.sid)
    assert client.welcome["restored_ids"] == [identifier]
    await client.send("history", identifier)
    await client.expect({"type": "confirm_history"})
    await second.call("broadcast", old, {"n": 1})
    await second.call("broadcast", new, {"n": 2})
    await client.expect({"message": {"n": 2}})
    await client.nothing()


async def test_what_was_unsubscribed_does_not_come_back(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    former = await connect_to(first)
    gone, stays = await subscribe(former), await subscribe(former)
    await former.send("unsubscribe", gone)
    await former.subscribe(gone)
    await former.send("unsubscribe", gone)
    await former.nothing()
    first.kill()
    client = await connect_to(second, sid=former.sid)
    assert client.welcome["restored_ids"] == [stays]


async def test_what_was_subscribed_anew_does_not_come_back_as_it_was(pair: Pair, connect_to: Connect) -> None:
    # Confirmed, but not in the record yet: it is not in `restored_ids`, and the client subscribes to it.
    first, second = pair
    former = await connect_to(first)
    identifier = await subscribe(former)
    await former.send("unsubscribe", identifier)
    await former.subscribe(identifier)
    first.kill()
    client = await connect_to(second, sid=former.sid)
    if client.welcome["restored_ids"]:
        await client.expect({"message": {"count": 0}})
    else:
        await client.subscribe(identifier)
    await works(client, identifier, 1)


async def test_the_old_connection_is_closed_if_it_was_not_noticed_dead(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    stream = unique("moved")
    former = await connect_to(first)
    identifier = await subscribe(former, stream)
    client = await connect_to(second, sid=former.sid)
    await former.closed()
    assert disconnects(former) == [], "the client would forget its session"
    await resume(client, identifier)
    await first.call("broadcast", stream, {"n": 1})
    assert await client.messages(identifier, 1) == [{"n": 1}]
    await client.nothing()


async def test_a_process_that_stood_still_closes_it_when_it_goes_on(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    former = await connect_to(first)
    identifier = await subscribe(former)
    await stand_still(first, second)
    client = await connect_to(second, sid=former.sid)
    await resume(client, identifier)
    first.signal(signal.SIGCONT)
    await former.closed()
    assert disconnects(former) == []
    await works(client, identifier)
    # And back again, while the other one lives.
    back = await connect_to(first, sid=client.sid)
    await client.closed()
    await resume(back, identifier, 2)
    await works(back, identifier, 3)


@pytest.mark.parametrize("there", [0, 1])
async def test_a_client_that_never_heard_its_welcome_comes_back_with_an_older_id(
    pair: Pair, connect_to: Connect, there: int
) -> None:
    first, second = pair
    former = await connect_to(first)
    identifier = await subscribe(former)
    await former.cut()
    unheard = await connect_to(second, sid=former.sid)
    client = await connect_to(pair[there], sid=former.sid)
    await unheard.closed()
    assert disconnects(unheard) == []
    await resume(client, identifier)
    await works(client, identifier)


async def test_back_and_forth_at_once_leaves_one_alive(pair: Pair, connect_to: Connect) -> None:
    former = await connect_to(pair[0])
    identifier = await subscribe(former)
    everyone = [former]
    for number in range(6):
        everyone.append(await connect_to(pair[(number + 1) % 2], sid=everyone[-1].sid))
    # First: a restored client that asks for no history within 10 s is disconnected.
    await resume(everyone[-1], identifier)
    for client in everyone[:-1]:
        await client.closed()
    await works(everyone[-1], identifier)


async def test_another_users_session_is_not_given_away_by_another_process(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    former = await connect_to(first, cookie=await first.sign_in("alice"))
    identifier = await subscribe(former)
    for cookie in ("", await second.sign_in("mallory")):
        thief = await connect_to(second, cookie=cookie, sid=former.sid)
        assert "restored" not in thief.welcome
    await former.nothing()
    owner = await connect_to(second, cookie=await second.sign_in("alice"), sid=former.sid)
    await resume(owner, identifier)
