"""permessage-deflate: what is agreed to, what of the servers is used for it, and who is sent which frames."""

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

from reliable_cable.connection.outbox import Outbox
from reliable_cable.protocol.frames import WINDOW_BITS, CompressedFrame, Frame
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.servers import transport_for
from reliable_cable.servers.base import Transport
from reliable_cable.servers.deflate import CompressingWebSocketProtocol
from reliable_cable.servers.uvicorn import CableWebSocketProtocol
from reliable_cable.stores.streams.base import Transient
from tests.support.deflate import read
from tests.support.subscriber import LoneSubscriber
from tests.unit.hubs import Harness
from tests.unit.test_servers import Wire

LONG = json.dumps({"text": "again and again " * 100})


# -- the handshake -----------------------------------------------------------------------------------------------------


class Handshake:
    """A handshake with a protocol of uvicorn's, which a `websockets` client makes that has these extensions."""

    def __init__(self, protocol: type[CableWebSocketProtocol], factory: ClientPerMessageDeflateFactory | None) -> None:
        self._scopes: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
        self._done = asyncio.Event()
        config = Config(self._application, interface="asgi3", log_config=None)
        config.load()
        self.protocol = protocol(config, ServerState(), {}, asyncio.get_running_loop())
        self.wire = Wire()
        self.client = ClientProtocol(parse_uri("ws://x/cable"), extensions=[factory] if factory else None)
        self.connection = Transport(None)

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        await self._scopes.put((scope, send))
        await self._done.wait()

    async def make(self) -> None:
        """Make it; the client raises where it does not agree with the answer."""
        self.client.send_request(self.client.connect())
        self.protocol.connection_made(self.wire)  # type: ignore[arg-type]
        self.protocol.data_received(b"".join(self.client.data_to_send()))
        scope, send = await asyncio.wait_for(self._scopes.get(), 5)
        self.connection = transport_for(scope, send)
        await send({"type": "websocket.accept"})
        (response,) = self.events()
        assert isinstance(response, Response)
        if self.client.handshake_exc is not None:
            raise self.client.handshake_exc

    def events(self) -> list[Any]:
        """Return what the client reads of what was written."""
        for data in self.wire.written:
            self.client.receive_data(data)
        self.wire.written.clear()
        return self.client.events_received()

    async def end(self) -> None:
        """Let the application return."""
        self.protocol.connection_lost(None)
        self._done.set()
        await asyncio.gather(*self.protocol.tasks)


Shake = Callable[..., Awaitable[Handshake]]


@pytest.fixture
async def shake() -> AsyncIterator[Shake]:
    """Make a handshake."""
    made: list[Handshake] = []

    async def shake(
        factory: ClientPerMessageDeflateFactory | None, protocol: type[CableWebSocketProtocol]
    ) -> Handshake:
        handshake = Handshake(protocol, factory)
        made.append(handshake)
        await handshake.make()
        return handshake

    yield shake
    for handshake in made:
        await handshake.end()


@pytest.mark.parametrize(
    "factory",
    [
        ClientPerMessageDeflateFactory(client_max_window_bits=None),  # as Firefox
        ClientPerMessageDeflateFactory(),  # as Chromium, and as `ws`
        ClientPerMessageDeflateFactory(True, True, 15, 15),
        ClientPerMessageDeflateFactory(server_max_window_bits=WINDOW_BITS, client_max_window_bits=9),
    ],
    ids=["nothing said", "may limit the client's window", "all said", "smallest window"],
)
async def test_offers_are_agreed_to_so_that_no_message_needs_another(
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
async def test_who_does_not_offer_it_or_allows_too_small_a_window_is_sent_plain_frames(
    shake: Shake, factory: ClientPerMessageDeflateFactory | None
) -> None:
    handshake = await shake(factory, CompressingWebSocketProtocol)
    assert handshake.client.extensions == []
    assert handshake.connection.form is Frame


async def test_the_protocol_that_is_the_default_agrees_to_no_offer(shake: Shake) -> None:
    handshake = await shake(ClientPerMessageDeflateFactory(), CableWebSocketProtocol)
    assert handshake.client.extensions == []
    assert handshake.connection.form is Frame


async def test_frames_and_what_goes_through_send_are_read_in_order(shake: Shake) -> None:
    """ASGI's `send` compresses by `websockets`' own extension, which the shared frames know nothing of."""
    handshake = await shake(ClientPerMessageDeflateFactory(), CompressingWebSocketProtocol)
    connection = handshake.connection
    assert connection.write is not None
    texts = [LONG, "short", LONG * 2, LONG, "ü" * 1000]
    connection.write(CompressedFrame(texts[0]).wire)
    await connection.send({"type": "websocket.send", "text": texts[1]})
    await connection.send({"type": "websocket.send", "text": texts[2]})
    connection.write(CompressedFrame(texts[3]).wire + Frame(texts[4]).wire)
    assert sum(map(len, handshake.wire.written)) < 2 * len(texts[4]) + len(LONG), "all but the last one are compressed"
    await connection.send({"type": "websocket.close", "code": 1000})
    *frames, close = handshake.events()
    assert [bytes(frame.data).decode() for frame in frames] == texts
    assert handshake.client.close_rcvd is not None
    assert handshake.client.close_rcvd.code == 1000
    assert isinstance(close, Parsed)


async def test_nothing_of_zlibs_is_kept_for_a_connection(shake: Shake) -> None:
    """A compressor and a decompressor would be attributes of `websockets`' extension."""
    handshake = await shake(ClientPerMessageDeflateFactory(), CompressingWebSocketProtocol)
    await handshake.connection.send({"type": "websocket.send", "text": LONG})
    handshake.client.send_text(LONG.encode())
    handshake.protocol.read_paused = True  # so that it does not ask the transport to stop
    handshake.protocol.data_received(b"".join(handshake.client.data_to_send()))
    assert handshake.protocol.queue.get_nowait() == {"type": "websocket.connect"}
    assert handshake.protocol.queue.get_nowait() == {"type": "websocket.receive", "text": LONG}
    (extension,) = handshake.protocol.conn.extensions
    assert extension.local_no_context_takeover  # type: ignore[attr-defined]
    assert [type(value) for value in vars(extension).values() if type(value).__module__ == "zlib"] == []


# -- the fan-out -------------------------------------------------------------------------------------------------------


class Subscriber:
    """A reader whose connection is written frames in a form."""

    def __init__(self, form: type[Frame]) -> None:
        self.compresses = form is CompressedFrame
        self.writes: list[bytes] = []
        outbox = Outbox(self._send, limit=10**6, overflow=lambda: None, write=self.writes.append, form=form)
        self.reader = LoneSubscriber(outbox, "I", "s", ())
        self.reader.presence = True

    async def _send(self, message: dict[str, Any]) -> None:
        raise AssertionError("only frames are sent")

    async def join(self, harness: Harness) -> None:
        """Be live."""
        await self.reader.join(harness.hub, "s")
        self.reader.confirmed = True
        self.reader.resume()

    def read(self) -> list[Any]:
        """Return the messages that came; all of them in the form that it takes."""
        read_ = [part for data in self.writes for part in read(data)]
        assert {compressed for compressed, _ in read_} <= {self.compresses}
        return [json.loads(text) for _, text in read_]


@pytest.fixture
async def harness() -> Harness:
    """A hub whose stream has a message."""
    harness = Harness()
    harness.append(LONG)
    return harness


@pytest.fixture
def all_kinds() -> list[Subscriber]:
    """Two who take compressed frames, and two who do not, by turns."""
    return [Subscriber(form) for form in (CompressedFrame, Frame, CompressedFrame, Frame)]


async def test_a_broadcast_is_compressed_once_for_all_who_agreed_and_for_nobody_else(
    harness: Harness, all_kinds: list[Subscriber]
) -> None:
    for one in all_kinds:
        await one.join(harness)
    await harness.publish(LONG)
    # These go out in one write.
    harness.hub.deliver(harness.append(LONG))
    harness.hub.deliver(Transient("s", LONG, ""))
    async with asyncio.timeout(5):
        while any(len(one.read()) < 3 for one in all_kinds):  # noqa: ASYNC110 - turns of the event loop
            await asyncio.sleep(0)
    for one in all_kinds:
        assert [frame["message"] for frame in one.read()] == [json.loads(LONG)] * 3
    first, plain, second, other = (one.writes for one in all_kinds)
    assert all(one is two for one, two in zip(first, second, strict=True))
    assert all(one is two for one, two in zip(plain, other, strict=True))


async def test_what_was_missed_and_what_waited_for_that_is_in_each_ones_form(
    harness: Harness, all_kinds: list[Subscriber]
) -> None:
    for one in all_kinds:
        await one.reader.join(harness.hub, "s")
        one.reader.confirmed = True
        one.reader.cursor = StreamPosition(one.reader.cursor.epoch, 0)
    harness.hub.deliver(Transient("s", LONG, ""))
    for one in all_kinds:
        assert await harness.hub.catch_up.send_page(one.reader.stream, one.reader)
        one.reader.resume()
        assert [frame.get("offset") for frame in one.read()] == [1, None]


async def test_presence_is_in_each_ones_form(harness: Harness, all_kinds: list[Subscriber]) -> None:
    for one in all_kinds:
        await one.join(harness)
    stream = all_kinds[0].reader.stream
    assert stream is not None
    stream.send_presence(LONG)
    for one in all_kinds:
        assert [frame["message"] for frame in one.read()] == [json.loads(LONG)]


async def test_groups_go_with_their_last_reader(harness: Harness, all_kinds: list[Subscriber]) -> None:
    for one in all_kinds:
        await one.join(harness)
    stream = all_kinds[0].reader.stream
    assert stream is not None
    assert len(stream.groups) == 2
    for one, left in zip(all_kinds, (2, 2, 1, 0), strict=True):
        one.reader.leave(harness.hub)
        assert len(stream.groups) == left
