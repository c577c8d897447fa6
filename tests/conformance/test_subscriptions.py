"""Subscribing, calling actions and unsubscribing (see Protocol: Subscriptions)."""

from __future__ import annotations

import asyncio

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import BASE, EXTENDED, Client, identify, unique
from tests.support.server import CallFailed, Kind, Server, ServerPool


@pytest.mark.parametrize("protocol", [EXTENDED, BASE])
async def test_a_subscription_is_confirmed_with_its_identifier_byte_for_byte(connect: Connect, protocol: str) -> None:
    client = await connect(protocols=[protocol])
    odd = '{ "b":1,"channel" :"EchoChannel", "a":"\\u00e9é", "a2": 1.0 }'
    await client.send("subscribe", odd)
    assert await client.next() == {"type": "confirm_subscription", "identifier": odd}


async def test_transmissions_come_before_the_confirmation_and_history_after_it(
    connect: Connect, server: Server
) -> None:
    stream = unique("greetings")
    position = await server.call("broadcast", stream, {"n": 1})
    client = await connect()
    identifier = identify("GreetingChannel", stream=stream)
    streams = {stream: {"epoch": position["epoch"], "offset": 0}}
    await client.send("subscribe", identifier, history={"since": 1, "streams": streams})
    await client.expect({"identifier": identifier, "message": {"greeting": 1}})
    await client.expect({"identifier": identifier, "message": {"greeting": 2}})
    await client.expect({"type": "confirm_subscription", "identifier": identifier})
    await client.expect({"identifier": identifier, "message": {"n": 1}, "offset": 1})
    await client.expect({"type": "confirm_history", "identifier": identifier})
    await server.call("broadcast", stream, {"n": 2})
    await client.expect({"identifier": identifier, "message": {"n": 2}, "offset": 2})


async def test_the_join_event_of_the_member_itself_follows_the_history(connect: Connect, server: Server) -> None:
    # The client drops presence events that precede the confirmation.
    client = await connect()
    identifier = identify("RoomChannel", room=unique("room"))
    await client.send("subscribe", identifier, history={"since": 1, "streams": {}}, presence={"id": "1", "info": {}})
    await client.expect({"type": "confirm_subscription"})
    await client.expect({"type": "confirm_history"})
    await client.expect({"type": "presence", "message": {"type": "join", "id": "1", "info": {}}})


async def test_a_rejected_subscription_gets_its_transmissions_and_no_stream(connect: Connect, server: Server) -> None:
    stream = unique("rejected")
    client = await connect()
    identifier = identify("RejectingChannel", stream=stream)
    await client.send("subscribe", identifier, history={"since": 1, "streams": {}})
    await client.expect({"identifier": identifier, "message": {"reason": "full"}})
    assert await client.next() == {"type": "reject_subscription", "identifier": identifier}
    await server.call("broadcast", stream, {"n": 1})
    await client.perform(identifier, "anything")
    await client.nothing()


async def test_a_client_can_subscribe_to_a_rejected_identifier_again(connect: Connect) -> None:
    client = await connect()
    identifier = identify("RejectingChannel", stream=unique("rejected"))
    for _ in range(2):
        await client.send("subscribe", identifier)
        assert [frame.get("type") for frame in await client.barrier()] == [None, "reject_subscription"]


@pytest.mark.parametrize("protocol", [EXTENDED, BASE])
async def test_every_second_repeat_of_a_subscribe_is_confirmed(connect: Connect, server: Server, protocol: str) -> None:
    audit = unique("audit")
    client = await connect(protocols=[protocol])
    identifier = await client.subscribe(identify("AuditedChannel", audit=audit))
    for _ in range(2):
        await client.send("subscribe", identifier)
        await client.nothing()
        await client.subscribe(identifier)
    assert (await server.call("position", audit))["offset"] == 1, "`subscribed` must run once"


@pytest.mark.parametrize("channel", ["GatedChannel", "AsyncGatedChannel"])
async def test_subscribed_runs_once_if_subscribe_is_repeated_meanwhile(
    connect: Connect, server: Server, channel: str
) -> None:
    gate = unique("gate")
    client = await connect()
    identifier = identify(channel, gate=gate)
    await client.send("subscribe", identifier)
    await server.call("wait_at_gate", gate, 1)
    await client.send("subscribe", identifier)
    await client.send("subscribe", identifier)
    assert await server.call("open_gate", gate) == 1
    await client.expect({"type": "confirm_subscription", "identifier": identifier})
    await client.nothing()
    assert await server.call("open_gate", gate) == 1


async def test_more_than_a_thousand_subscribes_at_once_are_confirmed(servers: ServerPool, kind: Kind) -> None:
    server = servers.get(kind, MAX_SUBSCRIPTIONS=2000)
    names = [unique("room") for _ in range(1100)]
    identifiers = [identify("StreamChannel", streams=[name]) for name in names]
    async with Client(server.url) as client:
        for identifier in identifiers:
            await client.send("subscribe", identifier)
        for identifier in identifiers:
            await client.expect({"type": "confirm_subscription", "identifier": identifier})
        for name, identifier in ((names[0], identifiers[0]), (names[-1], identifiers[-1])):
            await server.call("broadcast", name, {"n": 1})
            assert await client.messages(identifier, 1) == [{"n": 1}]


async def test_a_slow_subscribe_delays_no_other_connection(connect: Connect, server: Server) -> None:
    gate = unique("gate")
    slow, quick = await connect(), await connect()
    for channel in ("GatedChannel", "AsyncGatedChannel"):
        await slow.send("subscribe", identify(channel, gate=gate))
        await server.call("wait_at_gate", gate, 1)
    stream = unique("quick")
    identifier = await quick.subscribe(identify("StreamChannel", streams=[stream]))
    await server.call("broadcast", stream, {"n": 1})
    assert await quick.messages(identifier, 1) == [{"n": 1}]
    await server.call("open_gate", gate)
    await slow.expect({"type": "confirm_subscription"})
    await slow.expect({"type": "confirm_subscription"})


async def test_commands_of_one_connection_are_handled_in_their_order(connect: Connect, server: Server) -> None:
    gate = unique("gate")
    client = await connect()
    echo = identify("EchoChannel")
    await client.send("subscribe", identify("GatedChannel", gate=gate))
    await client.send("subscribe", echo)
    for number in range(20):
        await client.perform(echo, "echo" if number % 2 else "aecho", n=number)
    await server.call("wait_at_gate", gate, 1)
    await server.call("open_gate", gate)
    await client.expect({"type": "confirm_subscription"})
    await client.expect({"type": "confirm_subscription", "identifier": echo})
    assert [message["echo"]["n"] for message in await client.messages(echo, 20)] == list(range(20))


async def test_handlers_of_many_connections_run_in_parallel(connect: Connect, server: Server) -> None:
    gate = unique("gate")
    clients = await asyncio.gather(*(connect() for _ in range(4)))
    for client in clients:
        await client.send("subscribe", identify("GatedChannel", gate=gate))
    assert await server.call("wait_at_gate", gate, 4) == 4
    await server.call("open_gate", gate)
    for client in clients:
        await client.expect({"type": "confirm_subscription"})


async def test_unsubscribe_is_not_acknowledged_and_ends_the_stream(connect: Connect, server: Server) -> None:
    stream, audit = unique("left"), unique("audit")
    client, auditor = await connect(), await connect()
    listening = await auditor.subscribe(identify("StreamChannel", streams=[audit]))
    identifier = await client.subscribe(identify("AuditedChannel", audit=audit, streams=[stream]))
    await client.send("unsubscribe", identifier)
    await client.send("unsubscribe", identifier)
    await client.nothing()
    await server.call("broadcast", stream, {"n": 1})
    await client.perform(identifier, "increment")
    await client.nothing()
    assert [event["event"] for event in await auditor.messages(listening, 2)] == ["subscribed", "unsubscribed"]
    await auditor.nothing()
    await client.subscribe(identifier)
    await client.nothing()


async def test_an_unsubscribe_ends_a_subscribe_that_is_pending(connect: Connect, server: Server) -> None:
    stream, gate = unique("stream"), unique("gate")
    client = await connect()
    identifier = identify("GatedChannel", gate=gate, streams=[stream])
    await client.send("subscribe", identifier)
    await server.call("wait_at_gate", gate, 1)
    await client.send("unsubscribe", identifier)
    await client.send("subscribe", identifier)
    await server.call("open_gate", gate)
    frames = await client.barrier()
    assert frames[-1] == {"type": "confirm_subscription", "identifier": identifier}
    await server.call("broadcast", stream, {"n": 1})
    assert await client.messages(identifier, 1) == [{"n": 1}]
    await client.nothing()


async def test_two_identifiers_on_one_stream_each_get_every_message(connect: Connect, server: Server) -> None:
    # The client keeps one position for each stream id (see Protocol: Stream ids).
    stream = unique("shared")
    client = await connect()
    first = await client.subscribe(identify("StreamChannel", streams=[stream], n=1))
    second = await client.subscribe(identify("StreamChannel", streams=[stream], n=2))
    third = await client.subscribe(identify("AsyncStreamChannel", streams=[stream]))
    await server.call("broadcast", stream, {"n": 1})
    frames = {frame["identifier"]: frame for frame in [await client.next() for _ in range(3)]}
    assert set(frames) == {first, second, third}
    assert frames[first]["stream_id"] == stream
    assert len({frame["stream_id"] for frame in frames.values()}) == 3, "each identifier must have its own stream id"
    assert {(frame["offset"], frame["epoch"]) for frame in frames.values()} == {(1, frames[first]["epoch"])}


async def test_stream_ids_stay_the_same_on_a_later_connection(connect: Connect, server: Server) -> None:
    # The client may subscribe in another order on the later connection.
    stream = unique("shared")
    client = await connect()
    first = await client.subscribe(identify("StreamChannel", streams=[stream], n=1))
    second = await client.subscribe(identify("StreamChannel", streams=[stream], n=2))
    await server.call("broadcast", stream, {"n": 1})
    frames = {frame["identifier"]: frame for frame in [await client.next(), await client.next()]}
    await client.cut()
    await server.call("broadcast", stream, {"n": 2})
    other = await connect()
    for identifier in (second, first):
        frame = frames[identifier]
        known = {frame["stream_id"]: {"epoch": frame["epoch"], "offset": frame["offset"]}}
        await other.subscribe(identifier, history={"since": 1, "streams": known})
        replayed = await other.expect({"identifier": identifier, "message": {"n": 2}, "offset": 2})
        assert replayed["stream_id"] == frame["stream_id"]
        await other.expect({"type": "confirm_history", "identifier": identifier})
    await server.call("broadcast", stream, {"n": 3})
    assert {frame["stream_id"] for frame in [await other.next(), await other.next()]} == {
        frame["stream_id"] for frame in frames.values()
    }


async def test_the_base_protocol_gets_no_positions(connect: Connect, server: Server) -> None:
    stream = unique("base")
    client = await connect(protocols=[BASE])
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream]))
    await server.call("broadcast", stream, {"n": 1})
    assert await client.next() == {"identifier": identifier, "message": {"n": 1}}


async def test_a_broadcast_of_a_falsy_payload_raises_an_error(server: Server) -> None:
    for payload in (0, "", False, None):
        with pytest.raises(CallFailed, match="InvalidPayload"):
            await server.call("broadcast", unique("falsy"), payload)
