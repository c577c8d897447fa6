"""`FaultProxy` causes network faults between a client and a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from tests.support.faults import FaultProxy

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class EchoServer:
    """A server that sends back all data that it receives."""

    def __init__(self) -> None:
        self.received = b""
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        yield
        server.close()
        await server.wait_closed()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(OSError):  # the connection is reset
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
        await leave(writer)


@pytest.fixture
async def server() -> AsyncIterator[EchoServer]:
    server = EchoServer()
    async with server.running():
        yield server


@pytest.fixture
async def proxy(server: EchoServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.fixture
async def connections(proxy: FaultProxy) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def connect(proxy: FaultProxy, connections: AsyncExitStack) -> Pair:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    connections.push_async_callback(leave, writer)
    return reader, writer


async def leave(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def echo(pair: Pair, text: bytes) -> bytes:
    """Send bytes, and return the same number of bytes of the response."""
    pair[1].write(text)
    async with asyncio.timeout(10):
        return await pair[0].readexactly(len(text))


async def is_reset(pair: Pair) -> bool:
    async with asyncio.timeout(10):
        try:
            return await pair[0].read() != b""
        except ConnectionResetError:
            return True


async def test_data_passes_in_both_directions(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    pair = await connect(proxy, connections)
    assert await echo(pair, b"one\n") == b"one\n"
    text = b"x" * 60_000 + b"\n"
    assert await echo(pair, text) == text
    pair[1].write_eof()
    assert await pair[0].read() == b""


async def test_cut_resets_all_connections(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    pairs = [await connect(proxy, connections) for _ in range(3)]
    for pair in pairs:
        await echo(pair, b"hello\n")
    assert proxy.cut() == 3
    assert [await is_reset(pair) for pair in pairs] == [True] * 3
    assert await echo(await connect(proxy, connections), b"again\n") == b"again\n"


async def test_cut_resets_a_chosen_connection(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    first, second = await connect(proxy, connections), await connect(proxy, connections)
    await echo(first, b"first\n")
    await echo(second, b"second\n")
    assert proxy.cut([proxy.links[0]]) == 1
    assert await is_reset(first)
    assert await echo(second, b"still\n") == b"still\n"


async def test_refuse_affects_only_new_connections(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    old = await connect(proxy, connections)
    await echo(old, b"old\n")
    proxy.refuse()
    assert await is_reset(await connect(proxy, connections))
    assert await echo(old, b"old\n") == b"old\n"
    proxy.accept()
    assert await echo(await connect(proxy, connections), b"new\n") == b"new\n"


async def test_interrupt_affects_open_and_new_connections(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    old = await connect(proxy, connections)
    await echo(old, b"old\n")
    assert proxy.interrupt() == 1
    assert await is_reset(old)
    assert await is_reset(await connect(proxy, connections))
    proxy.accept()
    assert await echo(await connect(proxy, connections), b"new\n") == b"new\n"


async def test_commands_after_a_handshake_are_withheld(
    proxy: FaultProxy, server: EchoServer, connections: AsyncExitStack
) -> None:
    handshake = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"
    proxy.withhold()
    pair = await connect(proxy, connections)
    assert await echo(pair, handshake) == handshake
    pair[1].write(b"command\n")
    await asyncio.wait_for(proxy.withheld.wait(), 10)
    assert server.received == handshake
    proxy.accept()
    other = await connect(proxy, connections)
    assert await echo(other, handshake) == handshake
    assert await echo(other, b"command\n") == b"command\n"


async def test_connections_are_reset_if_the_server_is_down() -> None:
    server = EchoServer()
    async with server.running():
        pass
    async with FaultProxy(server.port) as proxy, AsyncExitStack() as connections:
        assert await is_reset(await connect(proxy, connections))


async def test_a_stalled_connection_delivers_its_data_when_it_is_resumed(
    proxy: FaultProxy, server: EchoServer, connections: AsyncExitStack
) -> None:
    pair = await connect(proxy, connections)
    await echo(pair, b"before\n")
    proxy.stall()
    pair[1].write(b"held\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pair[0].read(5), 0.05)
    assert server.received == b"before\n"
    proxy.resume()
    assert await asyncio.wait_for(pair[0].readexactly(5), 10) == b"held\n"


async def test_a_reply_is_lost_after_the_server_has_received_the_request(
    proxy: FaultProxy, server: EchoServer, connections: AsyncExitStack
) -> None:
    unlucky, other = await connect(proxy, connections), await connect(proxy, connections)
    lost = proxy.lose_reply(b"append")
    assert await echo(other, b"read\n") == b"read\n"
    assert await echo(unlucky, b"app") == b"app"  # the pattern may arrive in parts
    unlucky[1].write(b"end 1\n")
    assert await is_reset(unlucky)
    assert lost.is_set()
    assert server.received == b"read\nappend 1\n"
    assert await echo(other, b"append 2\n") == b"append 2\n", "more than one reply was lost"


async def test_a_redis_error_is_not_the_reply_to_lose(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    pair = await connect(proxy, connections)
    lost = proxy.lose_reply(b"append")
    assert await echo(pair, b"-NOSCRIPT append\n") == b"-NOSCRIPT append\n"
    assert not lost.is_set()
    pair[1].write(b"append\n")
    assert await is_reset(pair)
    assert lost.is_set()


async def test_lose_nothing_cancels_a_pending_loss(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    pair = await connect(proxy, connections)
    lost = proxy.lose_reply(b"append")
    proxy.lose_nothing()
    assert await echo(pair, b"append\n") == b"append\n"
    assert not lost.is_set()


@pytest.mark.parametrize("word", [b"SUBSCRIBE", b"subscribe", b"PSUBSCRIBE", b"SSUBSCRIBE"])
async def test_a_pubsub_connection_is_recognized_by_its_subscribe_command(
    proxy: FaultProxy, connections: AsyncExitStack, word: bytes
) -> None:
    plain, listening = await connect(proxy, connections), await connect(proxy, connections)
    await echo(plain, b"GET SUBSCRIBE\n")
    await echo(listening, b"*2\r\n$9\r\n" + word + b"\r\n$4\r\nchat\r\n")
    assert [link.subscribed for link in proxy.links] == [False, True]
    proxy.cut(link for link in proxy.links if link.subscribed)
    assert await is_reset(listening)
    assert await echo(plain, b"on\n") == b"on\n"


async def test_the_end_of_the_block_resets_open_connections(server: EchoServer) -> None:
    async with AsyncExitStack() as connections:
        async with FaultProxy(server.port) as proxy:
            pair = await connect(proxy, connections)
            await echo(pair, b"hello\n")
        assert await is_reset(pair)


async def test_move_leads_new_connections_to_another_server_and_keeps_open_ones(
    proxy: FaultProxy, server: EchoServer, connections: AsyncExitStack
) -> None:
    before = await connect(proxy, connections)
    assert await echo(before, b"before") == b"before"
    other = EchoServer()
    async with other.running():
        proxy.move(other.port)
        after = await connect(proxy, connections)
        assert await echo(after, b"after") == b"after"
        assert await echo(before, b" still") == b" still"
        await leave(after[1])
    assert (server.received, other.received) == (b"before still", b"after")
