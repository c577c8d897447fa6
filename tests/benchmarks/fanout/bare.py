"""A bare ASGI hub: the least that a server in Python can do, without Django, Channels, sessions, history or pings.

Its frames are as long as this project's. `POST /_broadcast?way=…` says how they are sent:

- `send`: awaits the ASGI `send` of each connection
- `write`: writes the ready frame to the transport of each
- `socket`: sends the ready frame by each transport's socket itself (daphne), from Python
- `floor`: the same from C (floor.py); `GET /floor` tells what that has taken
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from reliable_cable.protocol.frames import text_frame
from tests.benchmarks.fanout.floor import Floor

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def transport_of(send: Any) -> Any:
    """Return the transport behind a `send` of uvicorn's or daphne's; None behind one that a middleware wraps."""
    protocol = send.args[0] if hasattr(send, "args") else getattr(send, "__self__", None)
    return getattr(protocol, "transport", None)


def socket_of(transport: Any) -> Any:
    """Return a transport's socket."""
    return transport.socket if hasattr(transport, "socket") else transport.get_extra_info("socket")


@dataclass
class Readers:
    """Who is subscribed to one stream, in every form that a way of sending needs."""

    identifier: str
    sends: list[Send] = field(default_factory=list)
    transports: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    count: int = 0

    def text(self, data: str) -> str:
        """Return a message as this project sends it."""
        self.count += 1
        return (
            f'{{"identifier":{json.dumps(self.identifier)},"message":{data},'
            f'"stream_id":"bench0","epoch":"xxxxxxxxxxxx","offset":{self.count}}}'
        )


class Hub:
    """The application."""

    def __init__(self) -> None:
        self.streams: dict[str, Readers] = {}
        self.floor = Floor()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request or a connection."""
        if scope["type"] == "websocket":
            await self.connection(receive, send)
        else:
            await self.request(scope, receive, send)

    async def connection(self, receive: Receive, send: Send) -> None:
        """Welcome a client, and confirm what it subscribes to."""
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "actioncable-v1-ext-json"})
        await send({"type": "websocket.send", "text": '{"type":"welcome","sid":"xxxxxxxxxxxxxxxxxxxxxxxx"}'})
        readers: Readers | None = None
        while (event := await receive())["type"] == "websocket.receive":
            identifier = json.loads(event["text"])["identifier"]
            stream = json.loads(identifier)["stream"]
            readers = self.streams.setdefault(stream, Readers(identifier))
            readers.sends.append(send)
            transport = transport_of(send)
            if transport is not None:
                readers.transports.append(transport)
                readers.numbers.append(socket_of(transport).fileno())
            text = json.dumps({"type": "confirm_subscription", "identifier": identifier})
            await send({"type": "websocket.send", "text": text})
        if readers is not None:
            self.streams = {}  # the run is over

    async def request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Broadcast, or tell what the floor was."""
        status, answer = 201, b""
        if scope["path"] == "/_broadcast":
            parts = [await receive()]
            while parts[-1].get("more_body"):
                parts.append(await receive())
            body = json.loads(b"".join(part["body"] for part in parts))
            way = parse_qs(scope["query_string"].decode()).get("way", ["send"])[0]
            readers = self.streams.get(body["stream"])
            if readers is not None:
                await self.broadcast(readers, readers.text(body["data"]), way)
        else:
            answer = json.dumps({"seconds": self.floor.seconds, "failed": self.floor.failed}).encode()
            status = 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    async def broadcast(self, readers: Readers, text: str, way: str) -> None:
        """Send a message to all readers."""
        if way == "send":
            for send in readers.sends:
                await send({"type": "websocket.send", "text": text})
            return
        frame = text_frame(text.encode())
        if way == "floor":
            self.floor.send(readers.numbers, frame)
        elif way == "write":
            for transport in readers.transports:
                transport.write(frame)
        else:
            for transport in readers.transports:
                sent = transport.socket.send(frame) if not transport.dataBuffer else 0
                if sent < len(frame):
                    transport.write(frame[sent:])


application = Hub()
