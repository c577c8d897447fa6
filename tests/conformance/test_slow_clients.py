"""A client that reads nothing uses bounded memory and is disconnected (see Protocol: Slow clients)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import AsyncExitStack

import pytest
from websockets.exceptions import ConnectionClosed

from reliable_cable.connection.outbox import STALL_TIME
from tests.support.client import BASE, EXTENDED, Client, Frame, identify, unique
from tests.support.server import Server

pytestmark = pytest.mark.slow

#: The size of each message, in bytes, and the number of messages.
SIZE, COUNT = 100_000, 300
#: How many clients stop reading at the same time.
SLOW = 100
#: How many messages to send at a time to a client that reads: together less than MAX_PENDING_SIZE.
STEP = 5
#: The number of messages in a burst: together many times MAX_PENDING_SIZE.
BURST = 50
#: How long, in seconds, the server may take to disconnect a client that stopped reading.
DISCONNECT_TIME = STALL_TIME + 20


async def follow(stack: AsyncExitStack, server: Server, stream: str) -> tuple[Client, str]:
    """Connect a client that reads a stream. Return it and the identifier of its subscription."""
    client = await stack.enter_async_context(Client(server.url))
    return client, await client.subscribe(identify("StreamChannel", streams=[stream]))


async def flood(server: Server, stream: str, quick: Client, identifier: str) -> list[int]:
    """Send 30 MB to a stream, and check that a client reads them. Return the server's memory, measured repeatedly."""
    memory = []
    for start in range(1, COUNT, STEP):
        await server.call("flood", stream, STEP, SIZE)
        received = [await quick.expect({"identifier": identifier}) for _ in range(STEP)]
        assert [frame["offset"] for frame in received] == list(range(start, start + STEP))
        memory.append(server.rss)
    return memory


async def test_a_client_that_reads_nothing_is_disconnected(server: Server) -> None:
    stream, audit = unique("small:"), unique("audit")
    slow_id = identify("AuditedChannel", audit=audit, streams=[stream])
    async with AsyncExitStack() as stack:
        quick, identifier = await follow(stack, server, stream)
        watcher, watching = await follow(stack, server, audit)
        before = server.rss
        # One client for each protocol, at the same time, because the disconnect takes ten seconds.
        for protocol in (EXTENDED, BASE):
            slow = await stack.enter_async_context(Client(server.url, protocols=[protocol], reading=False))
            await slow.send("subscribe", slow_id)
            assert (await watcher.messages(watching, 1))[0]["event"] == "subscribed"
        memory = await flood(server, stream, quick, identifier)
        # The stream has carried 30 MB, but the server may keep only 1 MiB for each client.
        assert memory[-1] - before < 25_000_000
        events = await watcher.messages(watching, 2, DISCONNECT_TIME)
        assert [event["event"] for event in events] == ["unsubscribed"] * 2
        await watcher.nothing()
    assert "too_slow" in server.log


async def test_a_hundred_clients_that_stop_reading_use_bounded_memory(server: Server) -> None:
    stream, audit = unique("small:"), unique("audit")
    slow_id = identify("AuditedChannel", audit=audit, streams=[stream])
    async with AsyncExitStack() as stack:
        quick, identifier = await follow(stack, server, stream)
        watcher, watching = await follow(stack, server, audit)
        for _ in range(SLOW):
            slow = await stack.enter_async_context(Client(server.url, reading=False))
            await slow.send("subscribe", slow_id)
        assert {event["event"] for event in await watcher.messages(watching, SLOW)} == {"subscribed"}
        before = server.rss
        memory = await flood(server, stream, quick, identifier)
        # The stream has carried 30 MB, but the server may keep only 1 MiB for each client.
        assert max(memory) - before < SLOW * 1024 * 1024 + 20_000_000
        assert {event["event"] for event in await watcher.messages(watching, SLOW, DISCONNECT_TIME)} == {"unsubscribed"}
    assert server.log.count("too_slow") >= SLOW


async def test_a_burst_reaches_clients_that_read_and_clients_that_pause(server: Server) -> None:
    # No client is disconnected. Messages for which an outbox has no room are later read from the history.
    stream = unique("burst")
    identifier = identify("StreamChannel", streams=[stream])
    log_size = len(server.log)
    async with Client(server.url, reading=False) as paused, Client(server.url) as quick:
        await paused.send("subscribe", identifier, history={"since": 1, "streams": {}})
        await quick.subscribe(identifier)
        await server.call("flood", stream, BURST, SIZE)
        received = [await quick.expect({"identifier": identifier}) for _ in range(BURST)]
        assert [frame["offset"] for frame in received] == list(range(1, BURST + 1))
        frames: list[Frame] = []
        async with asyncio.timeout(30):
            while not frames or frames[-1].get("offset") != BURST:
                frames.append(json.loads(await paused.socket.recv()))
        assert [frame["offset"] for frame in frames if "offset" in frame] == list(range(1, BURST + 1))
    assert "too_slow" not in server.log[log_size:]


async def test_a_client_that_calls_actions_and_reads_no_answers_is_disconnected(server: Server) -> None:
    # The messages of this test are transmissions to one client, not a fan-out.
    audit = unique("audit")
    async with Client(server.url) as watcher, Client(server.url, reading=False) as slow:
        watching = await watcher.subscribe(identify("StreamChannel", streams=[audit]))
        fill = identify("FillChannel")
        await slow.send("subscribe", identify("AuditedChannel", audit=audit))
        await slow.send("subscribe", fill)
        assert (await watcher.messages(watching, 1))[0]["event"] == "subscribed"
        before, log_size = server.rss, len(server.log)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                await slow.perform(fill, "fill", count=10, size=20_000)
        # The answers wait for the socket, which accepts nothing until the client is disconnected as too slow.
        assert (await watcher.messages(watching, 1, DISCONNECT_TIME))[0]["event"] == "unsubscribed"
        assert "too_slow" in server.log[log_size:]
        assert server.rss - before < 25_000_000, "the client has requested 40 MB"


async def test_a_client_that_pauses_catches_up(server: Server) -> None:
    # Less than MAX_PENDING_SIZE is pending, so the client is not disconnected, and no message is lost.
    stream = unique("pause")
    identifier = identify("StreamChannel", streams=[stream])
    async with Client(server.url, reading=False) as slow, Client(server.url) as quick:
        await slow.send("subscribe", identifier, history={"since": 1, "streams": {}})
        await quick.subscribe(identifier)
        await server.call("flood", stream, 8, 100_000)
        await quick.messages(identifier, 8)
        frames: list[Frame] = []
        async with asyncio.timeout(10):
            while not frames or frames[-1].get("offset") != 8:
                frames.append(json.loads(await slow.socket.recv()))
        assert [frame["offset"] for frame in frames if "offset" in frame] == list(range(1, 9))
