"""A client that reads nothing costs bounded memory and is disconnected; the others notice nothing (promise 6)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import AsyncExitStack

import pytest
from websockets.exceptions import ConnectionClosed

from reliable_cable.connection.outbox import STALL_TIME
from tests.support.client import BASE, EXTENDED, Client, Frame, identify, unique
from tests.support.server import Kind, ServerPool

pytestmark = pytest.mark.slow

SIZE, COUNT = 100_000, 300
#: Clients that stop reading at once.
SLOW = 100
#: How many are sent until the reader is waited for: less than MAX_PENDING_SIZE.
STEP = 5
#: How many come at once in a burst: many times MAX_PENDING_SIZE.
BURST = 50
#: Seconds until a client that takes nothing any more has been dropped.
DROPPED = STALL_TIME + 20


@pytest.mark.parametrize("protocol", [EXTENDED, BASE])
async def test_a_client_that_reads_nothing_is_dropped(servers: ServerPool, kind: Kind, protocol: str) -> None:
    server = servers.get(kind)
    stream, audit = unique("small:"), unique("audit")
    slow_id = identify("AuditedChannel", audit=audit, streams=[stream])
    async with Client(server.url) as watcher, Client(server.url) as reader:
        watching = await watcher.subscribe(identify("StreamChannel", streams=[audit]))
        identifier = await reader.subscribe(identify("StreamChannel", streams=[stream]))
        before = server.rss
        async with Client(server.url, protocols=[protocol], reading=False) as slow:
            await slow.send("subscribe", slow_id)
            assert (await watcher.messages(watching, 1))[0]["event"] == "subscribed"
            for start in range(1, COUNT, STEP):
                await server.call("flood", stream, STEP, SIZE)
                received = [await reader.expect({"identifier": identifier}) for _ in range(STEP)]
                assert [frame["offset"] for frame in received] == list(range(start, start + STEP))
            # 30 MB went through; what one client may hold back is 1 MiB.
            assert server.rss - before < 20_000_000
            assert (await watcher.messages(watching, 1, DROPPED))[0]["event"] == "unsubscribed"
            await watcher.nothing()
    assert "too_slow" in server.log


async def test_a_hundred_clients_that_stop_reading_cost_bounded_memory(servers: ServerPool, kind: Kind) -> None:
    server = servers.get(kind)
    stream, audit = unique("small:"), unique("audit")
    slow_id = identify("AuditedChannel", audit=audit, streams=[stream])
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(Client(server.url))
        watcher = await stack.enter_async_context(Client(server.url))
        identifier = await reader.subscribe(identify("StreamChannel", streams=[stream]))
        watching = await watcher.subscribe(identify("StreamChannel", streams=[audit]))
        for _ in range(SLOW):
            slow = await stack.enter_async_context(Client(server.url, reading=False))
            await slow.send("subscribe", slow_id)
        assert {event["event"] for event in await watcher.messages(watching, SLOW)} == {"subscribed"}
        before, most = server.rss, 0
        for start in range(1, COUNT, STEP):
            await server.call("flood", stream, STEP, SIZE)
            received = [await reader.expect({"identifier": identifier}) for _ in range(STEP)]
            assert [frame["offset"] for frame in received] == list(range(start, start + STEP))
            most = max(most, server.rss - before)
        # 30 MB went through for each of them.
        assert most < SLOW * 1024 * 1024 + 20_000_000
        assert {event["event"] for event in await watcher.messages(watching, SLOW, DROPPED)} == {"unsubscribed"}
    assert server.log.count("too_slow") >= SLOW


async def test_a_burst_reaches_who_reads_and_who_pauses_for_a_moment(servers: ServerPool, kind: Kind) -> None:
    # Nobody is dropped: what does not fit is read from the history, at each one's pace.
    server = servers.get(kind)
    stream = unique("burst")
    identifier = identify("StreamChannel", streams=[stream])
    heard = len(server.log)
    async with Client(server.url, reading=False) as paused, Client(server.url) as reader:
        await paused.send("subscribe", identifier, history={"since": 1, "streams": {}})
        await reader.subscribe(identifier)
        await server.call("flood", stream, BURST, SIZE)
        received = [await reader.expect({"identifier": identifier}) for _ in range(BURST)]
        assert [frame["offset"] for frame in received] == list(range(1, BURST + 1))
        frames: list[Frame] = []
        async with asyncio.timeout(30):
            while not frames or frames[-1].get("offset") != BURST:
                frames.append(json.loads(await paused.socket.recv()))
        assert [frame["offset"] for frame in frames if "offset" in frame] == list(range(1, BURST + 1))
    assert "too_slow" not in server.log[heard:]


async def test_a_client_that_asks_much_and_reads_nothing_is_dropped(servers: ServerPool, kind: Kind) -> None:
    # Transmissions to one client alone, not a fan-out.
    server = servers.get(kind)
    audit = unique("audit")
    async with Client(server.url) as watcher, Client(server.url, reading=False) as slow:
        watching = await watcher.subscribe(identify("StreamChannel", streams=[audit]))
        fill = identify("FillChannel")
        await slow.send("subscribe", identify("AuditedChannel", audit=audit))
        await slow.send("subscribe", fill)
        assert (await watcher.messages(watching, 1))[0]["event"] == "subscribed"
        before, heard = server.rss, len(server.log)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                await slow.perform(fill, "fill", count=10, size=20_000)
        assert (await watcher.messages(watching, 1))[0]["event"] == "unsubscribed"
        assert "too_slow" in server.log[heard:]
        assert server.rss - before < 25_000_000, "it asked for 40 MB"


async def test_a_reader_that_is_slow_for_a_moment_catches_up(servers: ServerPool, kind: Kind) -> None:
    # Less than MAX_PENDING_SIZE piles up: nobody is dropped, and nothing is lost.
    server = servers.get(kind)
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
