"""The proxy that puts faults between the tests' clients and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from tests.support.faults import FaultProxy

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Parrot:
    """A server that repeats all that it hears."""

    def __init__(self) -> None:
        self.heard = b""
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
        with suppress(OSError):  # reset
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
                await writer.drain()
        await leave(writer)


@pytest.fixture
async def parrot() -> AsyncIterator[Parrot]:
    parrot = Parrot()
    async with parrot.running():
        yield parrot


@pytest.fixture
async def proxy(parrot: Parrot) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(parrot.port) as proxy:
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


async def say(pair: Pair, text: bytes) -> bytes:
    """Send a text; return as much as comes back."""
    pair[1].write(text)
    async with asyncio.timeout(10):
        return await pair[0].readexactly(len(text))


async def is_reset(pair: Pair) -> bool:
    async with asyncio.timeout(10):
        try:
            return await pair[0].read() != b""
        except ConnectionResetError:
            return True


async def test_everything_passes_in_both_directions(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    pair = await connect(proxy, connections)
    assert await say(pair, b"one\n") == b"one\n"
    text = b"x" * 60_000 + b"\n"
    assert await say(pair, text) == text
    pair[1].write_eof()
    assert await pair[0].read() == b""


async def test_all_connections_are_cut_with_a_reset(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    pairs = [await connect(proxy, connections) for _ in range(3)]
    for pair in pairs:
        await say(pair, b"hello\n")
    assert proxy.cut() == 3
    assert [await is_reset(pair) for pair in pairs] == [True] * 3
    assert await say(await connect(proxy, connections), b"again\n") == b"again\n"


async def test_one_chosen_connection_is_cut(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    first, second = await connect(proxy, connections), await connect(proxy, connections)
    await say(first, b"first\n")
    await say(second, b"second\n")
    assert proxy.cut([proxy.links[0]]) == 1
    assert await is_reset(first)
    assert await say(second, b"still\n") == b"still\n"


async def test_new_connections_are_refused_while_the_old_go_on(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    old = await connect(proxy, connections)
    await say(old, b"old\n")
    proxy.refuse()
    assert await is_reset(await connect(proxy, connections))
    assert await say(old, b"old\n") == b"old\n"
    proxy.accept()
    assert await say(await connect(proxy, connections), b"new\n") == b"new\n"


async def test_a_server_that_is_down_is_a_reset() -> None:
    parrot = Parrot()
    async with parrot.running():
        pass
    async with FaultProxy(parrot.port) as proxy, AsyncExitStack() as connections:
        assert await is_reset(await connect(proxy, connections))


async def test_a_stalled_connection_delivers_when_it_is_resumed(
    proxy: FaultProxy, parrot: Parrot, connections: AsyncExitStack
) -> None:
    pair = await connect(proxy, connections)
    await say(pair, b"before\n")
    proxy.stall()
    pair[1].write(b"held\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pair[0].read(5), 0.05)
    assert parrot.heard == b"before\n"
    proxy.resume()
    assert await asyncio.wait_for(pair[0].readexactly(5), 10) == b"held\n"


async def test_a_reply_is_lost_after_the_server_had_the_request(
    proxy: FaultProxy, parrot: Parrot, connections: AsyncExitStack
) -> None:
    unlucky, other = await connect(proxy, connections), await connect(proxy, connections)
    lost = proxy.lose_reply(b"append")
    assert await say(other, b"read\n") == b"read\n"
    assert await say(unlucky, b"app") == b"app"  # a pattern may come in parts
    unlucky[1].write(b"end 1\n")
    assert await is_reset(unlucky)
    assert lost.is_set()
    assert parrot.heard == b"read\nappend 1\n"
    assert await say(other, b"append 2\n") == b"append 2\n", "only one is lost"


async def test_a_redis_error_is_no_reply_to_lose(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    pair = await connect(proxy, connections)
    lost = proxy.lose_reply(b"append")
    assert await say(pair, b"-NOSCRIPT append\n") == b"-NOSCRIPT append\n"
    assert not lost.is_set()
    pair[1].write(b"append\n")
    assert await is_reset(pair)
    assert lost.is_set()


async def test_a_loss_that_met_no_request_is_forgotten(proxy: FaultProxy, connections: AsyncExitStack) -> None:
    pair = await connect(proxy, connections)
    lost = proxy.lose_reply(b"append")
    proxy.lose_nothing()
    assert await say(pair, b"append\n") == b"append\n"
    assert not lost.is_set()


@pytest.mark.parametrize("word", [b"SUBSCRIBE", b"subscribe", b"PSUBSCRIBE", b"SSUBSCRIBE"])
async def test_the_pubsub_connection_is_known_by_its_subscribe(
    proxy: FaultProxy, connections: AsyncExitStack, word: bytes
) -> None:
    plain, listening = await connect(proxy, connections), await connect(proxy, connections)
    await say(plain, b"GET SUBSCRIBE\n")
    await say(listening, b"*2\r\n$9\r\n" + word + b"\r\n$4\r\nchat\r\n")
    assert [link.subscribed for link in proxy.links] == [False, True]
    proxy.cut(link for link in proxy.links if link.subscribed)
    assert await is_reset(listening)
    assert await say(plain, b"on\n") == b"on\n"


async def test_leaving_the_block_resets_what_is_open(parrot: Parrot) -> None:
    async with AsyncExitStack() as connections:
        async with FaultProxy(parrot.port) as proxy:
            pair = await connect(proxy, connections)
            await say(pair, b"hello\n")
        assert await is_reset(pair)


async def test_a_moved_address_leads_new_connections_elsewhere_and_keeps_the_open_ones(
    proxy: FaultProxy, parrot: Parrot, connections: AsyncExitStack
) -> None:
    before = await connect(proxy, connections)
    assert await say(before, b"before") == b"before"
    other = Parrot()
    async with other.running():
        proxy.move(other.port)
        after = await connect(proxy, connections)
        assert await say(after, b"after") == b"after"
        assert await say(before, b" still") == b" still"
        await leave(after[1])
    assert (parrot.heard, other.heard) == (b"before still", b"after")
