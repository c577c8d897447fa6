"""Tests of permessage-deflate on real servers."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from reliable_cable.protocol.frames import WINDOW_BITS
from tests.support.client import Client, identify, unique
from tests.support.deflate import DeflateOffer
from tests.support.server import Server, ServerPool

#: The payloads of these tests. A compressing server compresses all of them except the last, which is too short.
PAYLOADS: list[Any] = [
    {"text": "żółw, again and again. " * 20},
    {"rows": [{"id": number, "name": f"row {number}", "open": True} for number in range(500)]},
    {"text": "x" * 200_000},
    {"n": 1},
]
COMPRESSED = [True, True, True, False]

Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
def compressing(servers: ServerPool) -> Server:
    """uvicorn with `CompressingWebSocketProtocol`. It sends no pings between the messages, because pings are not
    compressed.
    """
    return servers.get("compressing", PING_INTERVAL=60)


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Return a function that opens a connection to a server, with options of `Client`."""
    async with AsyncExitStack() as stack:

        async def connect(server: Server, *extensions: DeflateOffer, **options: Any) -> Client:
            return await stack.enter_async_context(Client(server.url, extensions=extensions, **options))

        yield connect


def agreed(factory: DeflateOffer) -> bool:
    """Return whether the server accepted compression. If so, check its window size and `no_context_takeover`."""
    if factory.agreed is None:
        return False
    assert factory.agreed.remote_no_context_takeover
    assert factory.agreed.remote_max_window_bits == WINDOW_BITS
    return True


async def all_receive(server: Server, clients: list[Client]) -> None:
    """Broadcast the payloads, and check that every client receives them."""
    stream = unique("mixed")
    identifier = identify("StreamChannel", streams=[stream])
    for client in clients:
        await client.subscribe(identifier)
    for payload in PAYLOADS:
        await server.call("broadcast", stream, payload)
    for client in clients:
        assert await client.messages(identifier, len(PAYLOADS)) == PAYLOADS


async def test_each_client_receives_what_it_negotiated(compressing: Server, connect: Connect) -> None:
    factories = [DeflateOffer(), DeflateOffer(server_max_window_bits=9), DeflateOffer(server_max_window_bits=15)]
    clients = [await connect(compressing, factory) for factory in factories] + [await connect(compressing)]
    assert [agreed(factory) for factory in factories] == [True, False, True]
    await all_receive(compressing, clients)
    for factory in (factories[0], factories[2]):
        assert factory.agreed is not None
        assert factory.agreed.compressed[-len(PAYLOADS) :] == COMPRESSED


async def test_missed_messages_are_compressed_and_a_reconnect_may_negotiate_anew(
    compressing: Server, connect: Connect
) -> None:
    stream = unique("missed")
    identifier = identify("StreamChannel", streams=[stream])
    client = await connect(compressing, DeflateOffer())
    await client.subscribe(identifier)
    await compressing.call("broadcast", stream, "first")
    first = await client.expect({"message": "first"})
    await client.cut()
    for payload in PAYLOADS:
        await compressing.call("broadcast", stream, payload)
    history = {"streams": {first["stream_id"]: {"epoch": first["epoch"], "offset": first["offset"]}}}
    for extensions in ([], [DeflateOffer()]):
        again = await connect(compressing, *extensions, sid=client.sid)
        assert again.welcome["restored"]
        await again.send("history", identifier, history=history)
        frames = await again.until({"type": "confirm_history"})
        assert [frame["message"] for frame in frames if "message" in frame] == PAYLOADS
        for factory in extensions:
            assert factory.agreed is not None
            assert sum(factory.agreed.compressed) >= 3
        client = again
        await client.cut()


async def test_commands_may_be_compressed(compressing: Server, connect: Connect) -> None:
    factory = DeflateOffer()
    client = await connect(compressing, factory)
    identifier = await client.subscribe(identify("EchoChannel"))
    for text in ("again and again " * 500, "short"):
        await client.perform(identifier, "echo", text=text)
        (message,) = await client.messages(identifier, 1)
        assert message["echo"]["text"] == text


@pytest.mark.parametrize(("size", "fragments"), [(200_000_000, 1), (3_000_000, 50)])
async def test_a_small_message_that_would_decompress_to_a_large_one_is_refused(
    compressing: Server, connect: Connect, size: int, fragments: int
) -> None:
    """The server closes the connection at 256 KiB, four times MAX_MESSAGE_SIZE, before it has decompressed the rest."""
    client = await connect(compressing, DeflateOffer())
    other = await connect(compressing)
    before = compressing.rss
    compressor = zlib.compressobj(9, zlib.DEFLATED, -WINDOW_BITS)
    bomb = b"".join(compressor.compress(bytes(size // 100)) for _ in range(100)) + compressor.flush()
    assert len(bomb) < size / 500
    step = -(-len(bomb) // fragments)
    frames = bytearray()
    for start in range(0, len(bomb), step):
        opcode, rsv1 = (Opcode.CONT, 0) if start else (Opcode.TEXT, 0x40)
        data = Frame(opcode, bomb[start : start + step], fin=start + step >= len(bomb)).serialize(mask=True)
        frames += bytes((data[0] | rsv1, *data[1:]))
    client.socket.transport.write(frames)
    # The close code is None if the connection was reset, because the server closed it before it had read all data.
    assert await client.closed() in (1009, None)
    assert compressing.rss - before < 50_000_000
    await other.nothing()


async def test_servers_without_shared_compression_keep_their_own(server: Server, connect: Connect) -> None:
    """uvicorn's own protocol compresses for each client, and daphne does not compress."""
    factory = DeflateOffer()
    clients = [await connect(server, factory), await connect(server)]
    assert (factory.agreed is not None) == (server.kind == "uvicorn")
    await all_receive(server, clients)
    if factory.agreed is not None:
        assert all(factory.agreed.compressed)
