"""What is used of the servers, pinned against the released versions."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from channels.sessions import CookieMiddleware, SessionMiddleware
from daphne.server import Server
from daphne.ws_protocol import WebSocketProtocol
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from reliable_cable.servers import recognise
from reliable_cable.servers.base import Connection
from reliable_cable.servers.daphne import DaphneConnection
from reliable_cable.servers.uvicorn import UvicornConnection


class Transport:
    """A Twisted transport, as far as it is used."""

    def __init__(self) -> None:
        self.producers: list[Any] = ["of the handshake"]
        self.aborted = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:  # noqa: N802 - Twisted's name
        assert not self.producers
        assert streaming
        self.producers.append(producer)

    def unregisterProducer(self) -> None:  # noqa: N802 - Twisted's name
        self.producers.clear()


def daphne_send() -> tuple[Any, WebSocketProtocol]:
    server = Server(application=None, endpoints=["tcp:0"])
    protocol = WebSocketProtocol()
    protocol.transport = Transport()
    return partial(server.handle_reply, protocol), protocol


def test_daphne_hands_over_a_partial_of_its_reply_method() -> None:
    """`create_application` is what makes it; its source is the contract."""
    source = Server.create_application.__code__.co_names
    assert "partial" in source
    assert "handle_reply" in source
    send, _ = daphne_send()
    assert isinstance(recognise({}, send), DaphneConnection)


def test_daphnes_buffer_is_watched_by_a_producer() -> None:
    send, protocol = daphne_send()
    calls: list[str] = []
    recognise({}, send).attach(lambda: calls.append("pause"), lambda: calls.append("resume"))
    (producer,) = protocol.transport.producers
    producer.pauseProducing()
    producer.resumeProducing()
    assert calls == ["pause", "resume"]
    producer.stopProducing()
    assert calls == ["pause", "resume", "pause"], "nothing is to be written to a lost connection"


def test_daphne_connections_are_aborted_through_autobahn(monkeypatch: pytest.MonkeyPatch) -> None:
    send, _ = daphne_send()
    calls: list[bool] = []
    monkeypatch.setattr(WebSocketProtocol, "dropConnection", lambda self, abort: calls.append(abort))
    recognise({}, send).abort()
    assert calls == [True]


async def uvicorn_send() -> tuple[Any, WebSocketsSansIOProtocol]:
    async def application(scope: Any, receive: Any, send: Any) -> None: ...

    config = Config(application, log_config=None)
    config.load()
    protocol = WebSocketsSansIOProtocol(config, ServerState(), {}, asyncio.get_running_loop())
    return protocol.send, protocol


async def test_uvicorn_hands_over_a_method_of_its_protocol() -> None:
    send, protocol = await uvicorn_send()

    class Aborted:
        done = False

        def abort(self) -> None:
            self.done = True

    protocol.transport = Aborted()  # type: ignore[assignment]
    connection = recognise({}, send)
    assert isinstance(connection, UvicornConnection)
    connection.abort()
    assert protocol.transport.done  # type: ignore[attr-defined]


async def test_middlewares_that_wrap_send_are_looked_behind() -> None:
    seen: list[Connection] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(recognise({}, send))

    def closure(inner: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def wrapped(message: Any) -> None:
                await send(message)

            await inner(scope, receive, wrapped)

        return middleware

    send, _ = daphne_send()
    stack = closure(CookieMiddleware(SessionMiddleware(closure(application))))
    await stack({"type": "websocket", "headers": []}, None, send)
    assert isinstance(seen[0], DaphneConnection)


async def test_other_servers_are_only_asked_to_close() -> None:
    sent: asyncio.Queue[Any] = asyncio.Queue()

    async def send(message: Any) -> None:
        sent.put_nowait(message)

    connection = recognise({}, send)
    assert type(connection) is Connection
    assert not connection.drainable
    connection.attach(lambda: None, lambda: None)
    connection.abort()
    assert await asyncio.wait_for(sent.get(), 5) == {"type": "websocket.close", "code": 1000}
