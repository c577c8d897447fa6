"""Behaviour of Action Cable in Rails that its users expect, in both protocols."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import BASE, EXTENDED, identify, unique
from tests.support.server import Server

PROTOCOLS = pytest.mark.parametrize("protocol", [BASE, EXTENDED])


@PROTOCOLS
async def test_a_channel_has_the_params_of_its_identifier(connect: Connect, protocol: str) -> None:
    client = await connect(protocols=[protocol])
    params = {"room": 7, "nested": {"list": [1, None, "ü"]}}
    identifier = await client.subscribe(identify("EchoChannel", **params))
    await client.perform(identifier, "echo", text="hi")
    assert await client.next() == {
        "identifier": identifier,
        "message": {"echo": {"action": "echo", "text": "hi"}, "params": params},
    }


@PROTOCOLS
async def test_sync_and_async_handlers_know_the_user_and_may_query(
    connect: Connect, server: Server, protocol: str
) -> None:
    client = await connect(protocols=[protocol], cookie=await server.sign_in("ann"))
    anonymous = await connect(protocols=[protocol])
    identifier = identify("EchoChannel")
    for each, name in ((client, "ann"), (anonymous, None)):
        await each.subscribe(identifier)
        for action in ("whoami", "awhoami"):
            await each.perform(identifier, action)
            assert await each.messages(identifier, 1) == [{"user": name}]


@PROTOCOLS
async def test_a_client_can_subscribe_to_one_channel_with_different_params(
    connect: Connect, server: Server, protocol: str
) -> None:
    client = await connect(protocols=[protocol])
    streams = [unique("room") for _ in range(3)]
    identifiers = [await client.subscribe(identify("StreamChannel", streams=[stream])) for stream in streams]
    for stream, identifier in zip(streams, identifiers, strict=True):
        await server.call("broadcast", stream, {"to": stream})
        await client.expect({"identifier": identifier, "message": {"to": stream}})
    await client.send("unsubscribe", identifiers[1])
    await client.perform(identifiers[0], "say", text="still here")
    await client.expect({"identifier": identifiers[0], "message": {"text": "still here"}})
    await server.call("broadcast", streams[1], {"to": "nobody"})
    await server.call("broadcast", streams[2], {"to": "the third"})
    await client.expect({"identifier": identifiers[2], "message": {"to": "the third"}})


@PROTOCOLS
async def test_an_action_broadcasts_to_all_subscribers(connect: Connect, protocol: str) -> None:
    speaker, listener = await connect(protocols=[protocol]), await connect()
    identifier = identify("StreamChannel", streams=[unique("room")])
    await speaker.subscribe(identifier)
    await listener.subscribe(identifier)
    await speaker.perform(identifier, "say", text="hi")
    for client in (speaker, listener):
        await client.expect({"identifier": identifier, "message": {"text": "hi"}})


@PROTOCOLS
async def test_streams_start_and_stop_in_actions(connect: Connect, server: Server, protocol: str) -> None:
    client = await connect(protocols=[protocol])
    first, second, third = unique("s"), unique("s"), unique("s")
    identifier = await client.subscribe(identify("StreamChannel", streams=[first, second]))
    await client.perform(identifier, "start", stream=third)
    await client.expect({"message": {"started": third}})
    await client.perform(identifier, "stop", stream=first)
    await client.expect({"message": {"stopped": first}})
    for number, stream in enumerate((first, second, third)):
        await server.call("broadcast", stream, {"n": number})
    await client.expect({"message": {"n": 1}})
    await client.expect({"message": {"n": 2}})
    await client.perform(identifier, "stop_all")
    await client.expect({"message": {"stopped": "all"}})
    for stream in (first, second, third):
        await server.call("broadcast", stream, {"n": 9})
    await client.perform(identifier, "start", stream=first)
    await client.expect({"message": {"started": first}})
    await server.call("broadcast", first, {"n": 10})
    await client.expect({"message": {"n": 10}})


async def test_a_stream_started_later_is_restored_too(connect: Connect, server: Server) -> None:
    first, second = unique("s"), unique("s")
    former = await connect()
    identifier = await former.subscribe(identify("StreamChannel", streams=[first]))
    await former.perform(identifier, "start", stream=second)
    await former.expect({"message": {"started": second}})
    await former.perform(identifier, "stop", stream=first)
    await former.expect({"message": {"stopped": first}})
    await former.cut()
    for stream in (first, second):
        await server.call("broadcast", stream, {"to": stream})
    client = await connect(sid=former.sid)
    assert client.welcome["restored_ids"] == [identifier]
    await client.send("history", identifier, history={"streams": {}})
    await client.expect({"message": {"to": second}})
    await client.expect({"type": "confirm_history"})
    await client.nothing()


async def test_checks_run_before_handlers(connect: Connect) -> None:
    client = await connect()
    stranger = identify("GuardedChannel", stranger=True)
    await client.send("subscribe", stranger)
    assert await client.next() == {"type": "reject_subscription", "identifier": stranger}
    guarded = identify("GuardedChannel")
    await client.send("subscribe", guarded)
    await client.expect({"message": {"subscribed": True}})
    await client.expect({"type": "confirm_subscription"})
    await client.perform(guarded, "act", n=1)
    await client.perform(guarded, "act", n=2, allowed=True)
    assert await client.messages(guarded, 1) == [{"acted": 2}]


@PROTOCOLS
@pytest.mark.parametrize("how", ["close", "cut"])
async def test_unsubscribed_is_called_once_for_each_subscription_on_close(
    connect: Connect, server: Server, protocol: str, how: str
) -> None:
    audit = unique("audit")
    watcher, client = await connect(), await connect(protocols=[protocol])
    watching = await watcher.subscribe(identify("StreamChannel", streams=[audit]))
    identifiers = [await client.subscribe(identify("AuditedChannel", audit=audit, id=n)) for n in range(3)]
    await client.send("unsubscribe", identifiers[0])
    await watcher.messages(watching, 4)
    await (client.close() if how == "close" else client.cut())
    events = await watcher.messages(watching, 2)
    assert sorted(message["id"] for message in events) == [1, 2]
    assert {message["event"] for message in events} == {"unsubscribed"}
    await server.call("broadcast", audit, {"event": "end"})
    assert await watcher.messages(watching, 1) == [{"event": "end"}]


async def test_a_broadcast_can_leave_out_the_client_that_caused_it(connect: Connect, server: Server) -> None:
    identifier = identify("StreamChannel", streams=[stream := unique("room")])
    ann, bob = await connect(), await connect()
    await ann.subscribe(identifier)
    await bob.subscribe(identifier)
    await server.call("broadcast", stream, {"n": 1}, exclude_socket=ann.sid)
    await server.call("broadcast", stream, {"n": 2}, to_others=True, socket_id=ann.sid)
    await server.call("broadcast", stream, {"n": 3}, transient=True, to_others=True, socket_id=ann.sid)
    await server.call("broadcast", stream, {"n": 4})
    assert await bob.messages(identifier, 4) == [{"n": n} for n in (1, 2, 3, 4)]
    frame = await ann.next()
    assert (frame["message"], frame["offset"]) == ({"n": 4}, 3)
    late = await connect()
    await late.send("subscribe", identifier, history={"since": 1, "streams": {}})
    await late.until({"type": "confirm_history"})
    assert [frame["message"]["n"] for frame in late.log if "message" in frame] == [1, 2, 4]


async def test_an_excluded_client_does_not_get_the_broadcast_from_the_history_either(
    connect: Connect, server: Server
) -> None:
    identifier = identify("StreamChannel", streams=[stream := unique("room")])
    former = await connect()
    await former.subscribe(identifier)
    await former.cut()
    await server.call("broadcast", stream, {"n": 1}, exclude_socket=former.sid)
    await server.call("broadcast", stream, {"n": 2})
    client = await connect(sid=former.sid)
    await client.send("history", identifier, history={"streams": {}})
    assert await client.messages(identifier, 1) == [{"n": 2}]
    await client.expect({"type": "confirm_history"})
