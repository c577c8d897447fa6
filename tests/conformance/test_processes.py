"""Broadcasts from other processes reach each subscriber once, in the order of their offsets."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.conformance.conftest import Connect
from tests.support.client import BASE, Client, identify, unique
from tests.support.server import OtherProcess, Server


async def follow(connect: Connect) -> tuple[Client, str, str]:
    """Connect a client that subscribes to a new stream. Return it, the stream and the identifier."""
    client, stream = await connect(), unique("beside")
    return client, stream, await client.subscribe(identify("StreamChannel", streams=[stream]))


async def test_a_broadcast_from_another_process_arrives_soon(connect: Connect, beside: OtherProcess) -> None:
    stream = unique("beside")
    client, base = await connect(), await connect(protocols=[BASE])
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream]))
    await base.subscribe(identifier)
    # A busy machine may delay a message, so only one of three has to arrive soon. POLL_INTERVAL is 0.1 s. If the server
    # found messages only with its regular checks, the second and the third would each take about 5 s.
    number, took = 0, 2.0
    while took >= 2 and number < 3:
        number += 1
        position = await beside.call("broadcast", stream, {"n": number})
        started = time.monotonic()
        assert await client.next() == {
            "identifier": identifier,
            "message": {"n": number},
            "stream_id": stream,
            "epoch": position["epoch"],
            "offset": number,
        }
        took = time.monotonic() - started
        assert await base.next() == {"identifier": identifier, "message": {"n": number}}
    assert took < 2


async def test_a_transient_broadcast_from_another_process_arrives(connect: Connect, beside: OtherProcess) -> None:
    kept, transient = unique("beside"), unique("cursor:")
    client = await connect()
    identifier = await client.subscribe(identify("StreamChannel", streams=[kept, transient]))
    await beside.call("broadcast", transient, {"n": 1})
    assert await client.next() == {"identifier": identifier, "message": {"n": 1}}
    await beside.call("broadcast", kept, {"n": 2}, transient=True)
    assert await client.next() == {"identifier": identifier, "message": {"n": 2}}
    await client.nothing()


@pytest.mark.slow
async def test_concurrent_broadcasts_are_neither_lost_nor_repeated(
    connect: Connect, server: Server, beside: OtherProcess
) -> None:
    # The processes do not wait for each other, so the database may show their rows in any order.
    stream, count = unique("large:"), 150
    clients = [await connect() for _ in range(3)]
    identifiers = [
        await client.subscribe(identify("StreamChannel", streams=[stream], n=n)) for n, client in enumerate(clients)
    ]
    with OtherProcess(server) as third:
        await asyncio.gather(
            server.call("count_up", stream, 1, count, "server"),
            beside.call("count_up", stream, 1, count, "beside"),
            third.call("count_up", stream, 1, count, "third"),
        )
    for client, identifier in zip(clients, identifiers, strict=True):
        frames = [await client.expect({"identifier": identifier}) for _ in range(3 * count)]
        assert [frame["offset"] for frame in frames] == list(range(1, 3 * count + 1))
        for writer in ("server", "beside", "third"):
            numbers = [frame["message"]["n"] for frame in frames if frame["message"]["writer"] == writer]
            assert numbers == list(range(1, count + 1)), "the messages of each writer must arrive in the writer's order"
        await client.nothing()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "count", "size"), [("transaction", 150, 10), ("loop", 150, 10), ("batch", 300, 3000), ("loop", 300, 3000)]
)
async def test_a_burst_larger_than_the_history_reaches_all_connected_clients(
    connect: Connect, beside: OtherProcess, how: str, count: int, size: int
) -> None:
    # The history size (100) limits what clients get when they reconnect. These clients stay connected.
    stream = unique("burst")
    client, base = await connect(), await connect(protocols=[BASE])
    identifier = await client.subscribe(identify("StreamChannel", streams=[stream]))
    await base.subscribe(identifier)
    for first in (1, count + 1):
        await beside.call("burst", stream, count, size, how)
        frames = [await client.next() for _ in range(count)]
        assert [frame.get("offset") for frame in frames] == list(range(first, first + count))
        numbers = [(await base.next())["message"]["n"] for _ in range(count)]
        assert numbers == list(range(1, count + 1))
    reconnected = await connect()
    await reconnected.send(
        "subscribe",
        identifier,
        history={"streams": {stream: {"epoch": frames[0]["epoch"], "offset": 2 * count - 101}}},
    )
    await reconnected.expect({"type": "confirm_subscription"})
    await reconnected.expect({"type": "reject_history", "identifier": identifier})


async def test_a_broadcast_in_a_transaction_arrives_after_the_commit_or_never(
    connect: Connect, beside: OtherProcess, server: Server
) -> None:
    # A broadcast that was rolled back is not stored, and uses no offset.
    client, stream, identifier = await follow(connect)
    for caller in (server, beside):
        assert await caller.call("broadcast_in_transaction", stream, {"undone": True}, commit=False) is None
        assert await caller.call("broadcast_in_transaction", stream, {"done": True}, commit=True) is None
    frames = [await client.next(), await client.next()]
    assert [(frame["offset"], frame["message"]) for frame in frames] == [(1, {"done": True}), (2, {"done": True})]
    assert frames[0]["identifier"] == identifier
    await client.nothing()


async def test_a_repeated_broadcast_with_the_same_key_arrives_once(
    connect: Connect, server: Server, beside: OtherProcess
) -> None:
    client, stream, identifier = await follow(connect)
    positions = [
        await caller.call("broadcast", stream, {"n": 1}, idempotency_key="k") for caller in (server, beside, server)
    ]
    assert positions[0] == positions[1] == positions[2]
    await server.call("broadcast", stream, {"n": 2})
    assert await client.messages(identifier, 2) == [{"n": 1}, {"n": 2}]


async def test_subscribers_get_reject_history_when_another_process_forgets_the_stream(
    connect: Connect, beside: OtherProcess
) -> None:
    client, stream, identifier = await follow(connect)
    await beside.call("count_up", stream, 1, 3)
    assert len(await client.messages(identifier, 3)) == 3
    await beside.call("forget", stream)
    await beside.call("broadcast", stream, {"n": 1})
    await client.expect({"type": "reject_history", "identifier": identifier})
    await client.expect({"message": {"n": 1}, "offset": 1})
    await client.nothing()
