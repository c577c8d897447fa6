"""The transports of event readers work with daphne and uvicorn, whose internals may change in any release."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from reliable_cable.protocol.events import Event
from reliable_cable.servers import event_transport_for
from reliable_cable.servers.events import EventTransport
from reliable_cable.servers.server_events import DaphneEventTransport, UvicornEventTransport
from tests.support.daphne_request import DaphneRequest

REQUEST = b"GET /events?stream=a HTTP/1.1\r\nHost: x\r\n\r\n"
EVENT = Event.make("data: 1")


async def refuse(*_: Any) -> None:
    """Take the place of the function that refuses readers, which these tests do not need."""


class Application:
    """An ASGI application that finds the transport of its only request, and returns when the reader has left."""

    def __init__(self) -> None:
        self.transport: asyncio.Future[EventTransport] = asyncio.get_running_loop().create_future()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def middleware(message: Any) -> None:
            await send(message)

        outermost = middleware if scope["headers"][0][1] == b"wrapped" else send
        transport = event_transport_for(outermost, refuse=refuse, form=Event, identifiers=["a"], resumed={})
        self.transport.set_result(transport)
        while (await receive())["type"] != "http.disconnect":
            pass


async def begin(transport: EventTransport) -> None:
    """Begin the response, confirm the subscription, and send one event."""
    await transport.send({"type": "websocket.accept"})
    transport.answered("a", confirmed=True)
    await transport.send({"type": "websocket.send", "text": EVENT})


# -- daphne ------------------------------------------------------------------------------------------------------------


class EventsOfDaphne(DaphneRequest):
    """A request for server-sent events, which daphne passes to an `Application`."""

    application: Application

    def __init__(self, request: bytes = REQUEST) -> None:
        super().__init__(Application(), request)


@pytest.fixture
async def daphne() -> Any:
    request = EventsOfDaphne()
    yield request
    request.lose()


async def test_events_are_written_directly_to_an_idle_socket_of_daphne(daphne: EventsOfDaphne) -> None:
    transport = await daphne.application.transport
    assert isinstance(transport, DaphneEventTransport)
    assert transport.drainable
    await begin(transport)
    daphne.flush()
    start = daphne.client.recv(10_000)
    assert start.startswith(b"HTTP/1.1 200 OK\r\n")
    assert start.endswith(b"\r\n\r\n%x\r\n%b\r\n" % (len(EVENT.wire), EVENT.wire))
    await transport.send({"type": "websocket.send", "text": EVENT})
    assert not daphne.reactor.writers
    assert daphne.client.recv(10_000) == b"%x\r\n%b\r\n" % (len(EVENT.wire), EVENT.wire)
    await transport.send({"type": "websocket.close"})
    daphne.flush()
    assert daphne.client.recv(10_000) == b"0\r\n\r\n"


async def test_a_full_buffer_of_daphne_is_observed_until_the_reader_is_released(daphne: EventsOfDaphne) -> None:
    transport = await daphne.application.transport
    calls: list[str] = []
    transport.attach(lambda: calls.append("pause"), lambda: calls.append("resume"))
    await begin(transport)
    daphne.flush()
    assert transport.unsent() is not None
    large = Event.make("data: " + "x" * 1_000_000)
    while not calls:
        await transport.send({"type": "websocket.send", "text": large})
    assert calls == ["pause"]
    unsent = transport.unsent()
    assert unsent is not None
    assert unsent > 100_000
    transport.release()
    daphne.lose()
    assert calls == ["pause"]


async def test_an_aborted_reader_of_daphne_is_lost(daphne: EventsOfDaphne) -> None:
    transport = await daphne.application.transport
    await begin(transport)
    assert not transport.lost
    transport.abort()
    daphne.lose()
    assert transport.lost
    assert transport.unsent() is None
    transport.abort()
    transport.attach(lambda: None, lambda: None)
    await transport.send({"type": "websocket.send", "text": EVENT})  # writes nothing


async def test_events_pass_through_the_middlewares_of_daphne() -> None:
    request = EventsOfDaphne(REQUEST.replace(b"Host: x", b"Host: wrapped"))
    try:
        transport = await request.application.transport
        assert isinstance(transport, DaphneEventTransport)
        await begin(transport)
        await transport.send({"type": "websocket.send", "text": EVENT})
        request.flush()
        assert request.client.recv(10_000).count(EVENT.wire) == 2
    finally:
        request.lose()


# -- uvicorn -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["h11", "httptools"])
def protocol(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param  # type: ignore[no-any-return]


async def test_an_aborted_reader_of_uvicorn_is_lost(protocol: Any) -> None:
    application = Application()
    config = Config(application, log_config=None, http=protocol, timeout_graceful_shutdown=7)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    factory: Any = config.http_protocol_class
    async with await loop.create_server(lambda: factory(config, state, {}, loop), "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(REQUEST)
        transport = await application.transport
        assert isinstance(transport, UvicornEventTransport)
        assert transport.drainable
        assert transport.grace == 7
        await begin(transport)
        assert (await reader.readuntil(b"data: 1")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert transport.unsent() is not None
        assert not transport.lost
        transport.abort()
        assert transport.lost
        assert transport.unsent() is None
        assert not (await reader.read()).endswith(b"0\r\n\r\n"), "the body must not be ended"
        writer.close()
        await writer.wait_closed()
        await asyncio.gather(*state.tasks)
