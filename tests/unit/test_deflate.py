"""Compression (permessage-deflate): the handshake, the protocol classes for uvicorn, and the frames to clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame as Parsed
from websockets.http11 import Response
from websockets.uri import parse_uri

from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox
from reliable_cable.protocol.frames import WINDOW_BITS, CompressedFrame, Frame
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.servers import transport_for
from reliable_cable.servers.base import Transport
from reliable_cable.servers.deflate import CompressingWebSocketProtocol
from reliable_cable.servers.uvicorn import CableWebSocketProtocol
from reliable_cable.stores.streams.base import Transient
from tests.support.asyncio_transport import AsyncioTransport
from tests.support.deflate import read
from tests.support.subscriber import LoneSubscriber
from tests.unit.hubs import Harness

LONG = json.dumps({"text": "again and again " * 100})


# -- the handshake -----------------------------------------------------------------------------------------------------


class Handshake:
    """A handshake between a `websockets` client and a protocol of uvicorn.

    Args:
        protocol: the class of the protocol.
        factory: the extension that the client offers, if any.
    """

    def __init__(self, protocol: type[CableWebSocketProtocol], factory: ClientPerMessageDeflateFactory | None) -> None:
        self._scopes: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
        self._done = asyncio.Event()
        config = Config(self._application, interface="asgi3", log_config=None)
        config.load()
        self.protocol = protocol(config, ServerState(), {}, asyncio.get_running_loop())
        self.transport = AsyncioTransport()
        self.client = ClientProtocol(parse_uri("ws://x/cable"), extensions=[factory] if factory else None)
        self.connection = Transport(None)

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        await self._scopes.put((scope, send))
        await self._done.wait()

    async def make(self) -> None:
        """Make the handshake. The client raises an error if it does not accept the response."""
        self.client.send_request(self.client.connect())
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]
        self.protocol.data_received(b"".join(self.client.data_to_send()))
        scope, send = await asyncio.wait_for(self._scopes.get(), 5)
        self.connection = transport_for(scope, send)
        await send({"type": "websocket.accept"})
        (response,) = self.events()
        assert isinstance(response, Response)
        if self.client.handshake_exc is not None:
            raise self.client.handshake_exc

    def events(self) -> list[Any]:
        """Return the events that the client reads from the written data."""
        for data in self.transport.written:
            self.client.receive_data(data)
        self.transport.written.clear()
        return self.client.events_received()

    async def end(self) -> None:
        """End the connection and the application."""
        self.protocol.connection_lost(None)
        self._done.set()
        await asyncio.gather(*self.protocol.tasks)


Shake = Callable[..., Awaitable[Handshake]]


@pytest.fixture
async def shake() -> AsyncIterator[Shake]:
    """A function that makes a handshake."""
    handshakes: list[Handshake] = []

    async def shake(
        factory: ClientPerMessageDeflateFactory | None, protocol: type[CableWebSocketProtocol]
    ) -> Handshake:
        handshake = Handshake(protocol, factory)
        handshakes.append(handshake)
        await handshake.make()
        return handshake

    yield shake
    for handshake in handshakes:
        await handshake.end()


@pytest.mark.parametrize(
    "factory",
    [
        ClientPerMessageDeflateFactory(client_max_window_bits=None),  # what Firefox offers
        ClientPerMessageDeflateFactory(),  # what Chromium and the package ws offer
        ClientPerMessageDeflateFactory(True, True, 15, 15),
        ClientPerMessageDeflateFactory(server_max_window_bits=WINDOW_BITS, client_max_window_bits=9),
    ],
    ids=["no parameters", "client window may be limited", "all parameters", "smallest window"],
)
async def test_an_offer_is_accepted_without_context_takeover(
    shake: Shake, factory: ClientPerMessageDeflateFactory
) -> None:
    handshake = await shake(factory, CompressingWebSocketProtocol)
    (agreed,) = handshake.client.extensions
    assert agreed.remote_no_context_takeover  # type: ignore[attr-defined]
    assert agreed.local_no_context_takeover  # type: ignore[attr-defined]
    assert agreed.remote_max_window_bits == WINDOW_BITS  # type: ignore[attr-defined]
    assert handshake.connection.form is CompressedFrame


@pytest.mark.parametrize(
    "factory",
    [None, *(ClientPerMessageDeflateFactory(server_max_window_bits=bits) for bits in range(8, WINDOW_BITS))],
    ids=lambda factory: f"{factory.server_max_window_bits} bits" if factory else "no offer",
)
async def test_a_client_with_no_offer_or_with_too_small_a_window_is_sent_plain_frames(
    shake: Shake, factory: ClientPerMessageDeflateFactory | None
) -> None:
    handshake = await shake(factory, CompressingWebSocketProtocol)
    assert handshake.client.extensions == []
    assert handshake.connection.form is Frame


async def test_the_default_protocol_accepts_no_offer(shake: Shake) -> None:
    handshake = await shake(ClientPerMessageDeflateFactory(), CableWebSocketProtocol)
    assert handshake.client.extensions == []
    assert handshake.connection.form is Frame


async def test_shared_frames_and_messages_by_asgi_send_are_read_in_order(shake: Shake) -> None:
    """ASGI's `send` compresses with the extension of `websockets`, which does not see the shared frames."""
    handshake = await shake(ClientPerMessageDeflateFactory(), CompressingWebSocketProtocol)
    connection = handshake.connection
    assert connection.write is not None
    texts = [LONG, "short", LONG * 2, LONG, "ü" * 1000]
    connection.write(CompressedFrame(texts[0]).wire)
    await connection.send({"type": "websocket.send", "text": texts[1]})
    await connection.send({"type": "websocket.send", "text": texts[2]})
    connection.write(CompressedFrame(texts[3]).wire + Frame(texts[4]).wire)
    # All messages but the last are compressed.
    assert sum(map(len, handshake.transport.written)) < 2 * len(texts[4]) + len(LONG)
    await connection.send({"type": "websocket.close", "code": 1000})
    *frames, close = handshake.events()
    assert [bytes(frame.data).decode() for frame in frames] == texts
    assert handshake.client.close_rcvd is not None
    assert handshake.client.close_rcvd.code == 1000
    assert isinstance(close, Parsed)


async def test_no_zlib_object_is_kept_for_a_connection(shake: Shake) -> None:
    """A kept compressor or decompressor would be an attribute of the extension of `websockets`."""
    handshake = await shake(ClientPerMessageDeflateFactory(), CompressingWebSocketProtocol)
    await handshake.connection.send({"type": "websocket.send", "text": LONG})
    handshake.client.send_text(LONG.encode())
    handshake.protocol.read_paused = True  # so that the protocol does not pause the transport
    handshake.protocol.data_received(b"".join(handshake.client.data_to_send()))
    assert handshake.protocol.queue.get_nowait() == {"type": "websocket.connect"}
    assert handshake.protocol.queue.get_nowait() == {"type": "websocket.receive", "text": LONG}
    (extension,) = handshake.protocol.conn.extensions
    assert extension.local_no_context_takeover  # type: ignore[attr-defined]
    assert [type(value) for value in vars(extension).values() if type(value).__module__ == "zlib"] == []


# -- the fan-out -------------------------------------------------------------------------------------------------------


class FrameClient:
    """A subscriber whose connection takes frames of one form: plain or compressed."""

    def __init__(self, form: type[Frame]) -> None:
        self.compresses = form is CompressedFrame
        self.writes: list[bytes] = []
        outbox = Outbox(self._send, account=Account(10**6), overflow=lambda: None, write=self.writes.append, form=form)
        self.subscriber = LoneSubscriber(outbox, "I", "s", ())
        self.subscriber.presence = True

    async def _send(self, message: dict[str, Any]) -> None:
        raise AssertionError("ASGI's send is not used")

    async def join(self, harness: Harness) -> None:
        """Subscribe and go live."""
        await self.subscriber.join(harness.hub, "s")
        self.subscriber.confirmed = True
        self.subscriber.resume()

    def read(self) -> list[Any]:
        """Return the received messages, after checking that all of them have the client's form."""
        frames = [frame for data in self.writes for frame in read(data)]
        assert {compressed for compressed, _ in frames} <= {self.compresses}
        return [json.loads(text) for _, text in frames]


@pytest.fixture
async def harness() -> Harness:
    """A hub whose stream has one message."""
    harness = Harness()
    harness.append(LONG)
    return harness


@pytest.fixture
def clients() -> list[FrameClient]:
    """Four clients, of which the first and the third take compressed frames."""
    return [FrameClient(form) for form in (CompressedFrame, Frame, CompressedFrame, Frame)]


async def test_a_broadcast_is_compressed_once_and_only_for_clients_with_compression(
    harness: Harness, clients: list[FrameClient]
) -> None:
    for client in clients:
        await client.join(harness)
    await harness.publish(LONG)
    # The next two messages are sent in one write.
    harness.hub.deliver(harness.append(LONG))
    harness.hub.deliver(Transient("s", LONG, ""))
    async with asyncio.timeout(30):
        while any(len(client.read()) < 3 for client in clients):  # noqa: ASYNC110 - iterations of the event loop
            await asyncio.sleep(0)
    for client in clients:
        assert [frame["message"] for frame in client.read()] == [json.loads(LONG)] * 3
    compressed, plain, also_compressed, also_plain = (client.writes for client in clients)
    assert all(data is same for data, same in zip(compressed, also_compressed, strict=True))
    assert all(data is same for data, same in zip(plain, also_plain, strict=True))


async def test_missed_and_held_messages_have_the_form_of_each_client(
    harness: Harness, clients: list[FrameClient]
) -> None:
    for client in clients:
        await client.subscriber.join(harness.hub, "s")
        client.subscriber.confirmed = True
        client.subscriber.cursor = StreamPosition(client.subscriber.cursor.epoch, 0)
    harness.hub.deliver(Transient("s", LONG, ""))
    for client in clients:
        assert await harness.hub.catch_up.send_page(client.subscriber.stream, client.subscriber)
        client.subscriber.resume()
        assert [frame.get("offset") for frame in client.read()] == [1, None]


async def test_presence_messages_have_the_form_of_each_client(harness: Harness, clients: list[FrameClient]) -> None:
    for client in clients:
        await client.join(harness)
    stream = clients[0].subscriber.stream
    assert stream is not None
    stream.send_presence(LONG)
    for client in clients:
        assert [frame["message"] for frame in client.read()] == [json.loads(LONG)]


async def test_a_group_is_removed_with_its_last_subscriber(harness: Harness, clients: list[FrameClient]) -> None:
    for client in clients:
        await client.join(harness)
    stream = clients[0].subscriber.stream
    assert stream is not None
    assert len(stream.groups) == 2
    for client, remaining in zip(clients, (2, 2, 1, 0), strict=True):
        client.subscriber.leave(harness.hub)
        assert len(stream.groups) == remaining
