"""A session can be restored in a process other than its former one (see Protocol: Restore)."""

from __future__ import annotations

import signal

import pytest

from reliable_cable.connection.lifecycle import HISTORY_TIMEOUT
from tests.conformance.conftest import Connect, Pair, suspend
from tests.support.client import Client, Frame, identify, unique

#: How long, in seconds, a server may take to close a superseded connection. After `HISTORY_TIMEOUT`, it would close the
#: connection for another reason.
SOON = HISTORY_TIMEOUT / 2


def history_after(frame: Frame) -> Frame:
    """Return the history request of a client that received this message last."""
    return {"streams": {frame["stream_id"]: {"epoch": frame["epoch"], "offset": frame["offset"]}}}


async def subscribe(client: Client, *streams: str) -> str:
    """Subscribe to a channel with a counter, and increment it. Any server can then restore this state."""
    identifier = await client.subscribe(identify("AuditedChannel", audit=unique("audit"), streams=streams))
    await client.perform(identifier, "increment")
    await client.expect({"message": {"count": 1}})
    return identifier


async def resume(client: Client, identifier: str, count: int = 1) -> None:
    """Check that a subscription was restored with its state, and request its history.

    Call this directly after the restore, because the server disconnects a client that requests no history within 10 s.
    """
    assert client.welcome["restored_ids"] == [identifier]
    await client.expect({"identifier": identifier, "message": {"count": count}})
    await client.send("history", identifier)
    await client.expect({"type": "confirm_history"})


async def check_works(client: Client, identifier: str, count: int = 2) -> None:
    """Increment the counter. Check that the client receives the new count, and nothing after it."""
    await client.perform(identifier, "increment")
    await client.expect({"identifier": identifier, "message": {"count": count}})
    await client.nothing()


def disconnect_frames(client: Client) -> list[Frame]:
    """Return the `disconnect` frames that a client has received."""
    return [frame for frame in client.log if frame.get("type") == "disconnect"]


@pytest.mark.parametrize("end", ["cut", "kill", "terminate"])
async def test_another_process_restores_a_session_with_its_state_and_missed_messages(
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
    await client.send("history", identifier, history=history_after(last))
    await client.expect({"message": {"n": 2}, "offset": 2})
    await client.expect({"type": "confirm_history"})
    await second.call("broadcast", stream, {"n": 3})
    await client.expect({"message": {"n": 3}, "offset": 3})
    await client.nothing()


async def test_the_state_that_a_client_has_seen_survives_a_kill_at_any_time(pair: Pair, connect_to: Connect) -> None:
    former = await connect_to(pair[0])
    identifier = await subscribe(former)
    for count in range(1, 5):
        here, there = pair if count % 2 else reversed(pair)
        here.kill()
        client = await connect_to(there, sid=former.sid)
        await resume(client, identifier, count)
        await check_works(client, identifier, count + 1)
        former = client
        await here.restart()


async def test_streams_that_an_action_started_and_stopped_survive_a_kill(pair: Pair, connect_to: Connect) -> None:
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


async def test_another_process_restores_no_right_that_was_taken_away(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    kept, lost, opened = (unique("rights") for _ in range(3))
    for stream in (kept, lost):
        await first.call("allow", stream)
    former = await connect_to(first)
    both = await former.subscribe(identify("RightsChannel", streams=[kept, lost]))
    await former.until({"type": "presence"})
    one = await former.subscribe(identify("RightsChannel", streams=[lost], id="one"))
    await former.perform(both, "start", stream=opened)
    await former.until({"message": {"started": opened}})
    await first.call("forbid", lost)
    first.kill()
    client = await connect_to(second, sid=former.sid)
    assert client.welcome["restored_ids"] == [both]
    await client.send("history", both)
    await client.expect({"type": "confirm_history"})
    await client.send("subscribe", one)
    await client.until({"type": "reject_subscription", "identifier": one})
    for stream in (lost, opened, kept):
        await second.call("broadcast", stream, {"n": 1})
    received = {(await client.next())["stream_id"] for _ in range(2)}
    assert received == {kept, opened}


async def test_an_ended_subscription_is_not_restored(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    former = await connect_to(first)
    ended, kept = await subscribe(former), await subscribe(former)
    await former.send("unsubscribe", ended)
    await former.subscribe(ended)
    await former.send("unsubscribe", ended)
    await former.nothing()
    first.kill()
    client = await connect_to(second, sid=former.sid)
    assert client.welcome["restored_ids"] == [kept]


async def test_a_new_subscription_is_not_restored_with_the_state_of_its_predecessor(
    pair: Pair, connect_to: Connect
) -> None:
    # If the confirmed subscription was not stored before the kill, it is missing in `restored_ids`, and the client
    # subscribes again.
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
    await check_works(client, identifier, 1)


async def test_the_former_connection_is_closed_if_it_is_still_open(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    stream = unique("moved")
    former = await connect_to(first)
    identifier = await subscribe(former, stream)
    client = await connect_to(second, sid=former.sid)
    await resume(client, identifier)
    await former.closed()
    assert disconnect_frames(former) == [], "the client would forget its session"
    await first.call("broadcast", stream, {"n": 1})
    assert await client.messages(identifier, 1) == [{"n": 1}]
    await client.nothing()


async def test_a_suspended_process_closes_the_former_connection_when_it_continues(
    pair: Pair, connect_to: Connect
) -> None:
    first, second = pair
    former = await connect_to(first)
    identifier = await subscribe(former)
    await suspend(first, second)
    client = await connect_to(second, sid=former.sid)
    await resume(client, identifier)
    first.signal(signal.SIGCONT)
    await former.closed()
    assert disconnect_frames(former) == []
    await check_works(client, identifier)
    # Move the session back while its connection to the other server is open.
    returned = await connect_to(first, sid=client.sid)
    await resume(returned, identifier, 2)
    await client.closed()
    await check_works(returned, identifier, 3)


@pytest.mark.parametrize("there", [0, 1])
async def test_a_client_that_did_not_receive_its_welcome_may_use_the_older_session_id(
    pair: Pair, connect_to: Connect, there: int
) -> None:
    first, second = pair
    former = await connect_to(first)
    identifier = await subscribe(former)
    await former.cut()
    intermediate = await connect_to(second, sid=former.sid)
    client = await connect_to(pair[there], sid=former.sid)
    await resume(client, identifier)
    await intermediate.closed()
    assert disconnect_frames(intermediate) == []
    await check_works(client, identifier)


async def test_of_many_connections_for_one_session_only_the_last_one_stays_open(
    pair: Pair, connect_to: Connect
) -> None:
    former = await connect_to(pair[0])
    identifier = await subscribe(former)
    clients = [former]
    for number in range(6):
        clients.append(await connect_to(pair[(number + 1) % 2], sid=clients[-1].sid))
    await resume(clients[-1], identifier)
    for client in clients[:-1]:
        await client.closed(SOON)
    await check_works(clients[-1], identifier)


async def test_another_process_does_not_restore_the_session_of_another_user(pair: Pair, connect_to: Connect) -> None:
    first, second = pair
    former = await connect_to(first, cookie=await first.sign_in("alice"))
    identifier = await subscribe(former)
    for cookie in ("", await second.sign_in("mallory")):
        thief = await connect_to(second, cookie=cookie, sid=former.sid)
        assert "restored" not in thief.welcome
    await former.nothing()
    owner = await connect_to(second, cookie=await second.sign_in("alice"), sid=former.sid)
    await resume(owner, identifier)
