"""Connections are lost and the server is killed. Clients that recover receive each message once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import AsyncExitStack

import pytest

from tests.support.client import Client, identify, unique
from tests.support.recovering import RecoveringClient
from tests.support.server import Kind, OtherProcess, ServerPool

pytestmark = pytest.mark.slow

TOTAL = 400
#: The number of connections to reset. Without a limit, a busy machine only handles reconnecting clients.
RESETS = 300


async def test_no_message_is_lost_when_connections_are_lost_repeatedly(servers: ServerPool, kind: Kind) -> None:
    server = servers.get(kind)
    beside = servers.beside(server)
    streams = [unique("large:") for _ in range(2)]
    identifiers = [
        identify("StreamChannel", streams=[streams[0]]),
        identify("StreamChannel", streams=[streams[0]], again=True),
        identify("AsyncStreamChannel", streams=[streams[1]]),
    ]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RecoveringClient(server.url)) for _ in range(6)]
        for client in clients:
            for identifier in identifiers:
                await client.subscribe(identifier)
        writing = [
            asyncio.create_task(server.call("count_up", streams[0], 1, TOTAL)),
            asyncio.create_task(beside.call("count_up", streams[1], 1, TOTAL)),
        ]
        cutting = asyncio.create_task(cut_randomly(clients))
        await asyncio.gather(*writing)
        cutting.cancel()
        for client in clients:
            await check_complete(client, identifiers)
        assert sum(client.restores for client in clients) > 0, "no session was restored"


async def cut_randomly(clients: list[RecoveringClient]) -> None:
    """Reset connections at random, until `RESETS` were reset or this is cancelled."""
    resets = 0
    while resets < RESETS:
        resets += await random.choice(clients).cut()
        await asyncio.sleep(0.01)


async def check_complete(client: RecoveringClient, identifiers: list[str]) -> None:
    """Wait until a client has received all messages, and check their order."""
    for identifier in identifiers:
        with contextlib.suppress(TimeoutError):  # the assertion shows which messages are missing
            await client.wait_for_messages(identifier, TOTAL)
        assert [message["n"] for message in client.received[identifier]] == list(range(1, TOTAL + 1))
        assert "history_not_found" not in client.infos[identifier]
    assert client.complaints == []


async def test_no_message_is_lost_when_the_server_is_killed_repeatedly(servers: ServerPool, kind: Kind) -> None:
    stream = unique("large:")
    identifier = identify("StreamChannel", streams=[stream])
    with servers.make(kind) as server, OtherProcess(server) as beside:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(RecoveringClient(server.url)) for _ in range(4)]
            for client in clients:
                await client.subscribe(identifier)
            for start in range(0, TOTAL, TOTAL // 2):
                half = asyncio.create_task(beside.call("count_up", stream, start + 1, start + TOTAL // 2))
                for client in clients:
                    await client.wait_for_messages(identifier, start + 1)
                await server.restart()
                await half
            for client in clients:
                await check_complete(client, [identifier])
                await client.wait_for(lambda client=client: client.connects >= 3)  # type: ignore[misc]


@pytest.mark.parametrize("restoring", [True, False])
async def test_no_message_is_lost_when_a_connection_is_lost_during_a_subscribe(
    servers: ServerPool, kind: Kind, restoring: bool
) -> None:
    # The npm client closes the channel. The application creates a new channel, which continues from the same position.
    server = servers.get(kind)
    stream, gate = unique("large:"), unique("gate")
    await server.call("count_up", stream, 1, 1)
    position = await server.call("position", stream)
    identifier = identify("GatedChannel", gate=gate, streams=[stream])
    async with RecoveringClient(server.url, restoring=restoring) as client:
        client.positions[stream] = position
        client.stream_ids[identifier].add(stream)
        subscribing = asyncio.create_task(client.subscribe(identifier))
        await server.call("wait_at_gate", gate, 1)
        await client.cut()
        await server.call("count_up", stream, 2, 5)
        await server.call("open_gate", gate)
        await subscribing
        assert client.recreated == 1
        await client.wait_for_messages(identifier, 4)
        await server.call("count_up", stream, 6, 6)
        await client.wait_for_messages(identifier, 5)
        assert [message["n"] for message in client.received[identifier]] == [2, 3, 4, 5, 6]
        assert client.complaints == []


async def test_no_message_is_lost_when_a_connection_is_lost_between_two_copies_of_one_message(
    servers: ServerPool, kind: Kind
) -> None:
    # If both identifiers had one stream id, the second identifier would request a position that it has not reached.
    server = servers.get(kind)
    stream = unique("large:")
    identifiers = [identify("StreamChannel", streams=[stream], n=n) for n in range(2)]
    async with Client(server.url) as former:
        for identifier in identifiers:
            await former.subscribe(identifier)
        await server.call("count_up", stream, 1, 1)
        copies = [await former.next(), await former.next()]
        await server.call("count_up", stream, 2, 2)
        # The client has received only the first copy of message 2.
        copies[0] = await former.next()
        await former.cut()
    positions = {frame["stream_id"]: {"epoch": frame["epoch"], "offset": frame["offset"]} for frame in copies}
    assert sorted(position["offset"] for position in positions.values()) == [1, 2]
    async with Client(server.url, sid=former.sid) as client:
        for frame in copies:
            known = {frame["stream_id"]: positions[frame["stream_id"]]}
            await client.send("history", frame["identifier"], history={"since": 1, "streams": known})
        frames = [await client.next() for _ in range(3)]
        assert [frame["identifier"] for frame in frames if "message" in frame] == [copies[1]["identifier"]]
