"""A bare ASGI hub, without Django, Channels, sessions, history and pings: the least that a server in Python can do.

Its frames are as long as those of this project. `POST /_broadcast?way=…` chooses how to send them:

- `send`: await the ASGI `send` of each connection
- `write`: write the encoded frame to the transport of each connection
- `socket`: send the encoded frame to the socket of each connection, from Python (daphne)
- `floor`: send the encoded frame to the socket of each connection, from C (floor.py); `GET /floor` returns the CPU time
  that this took
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
    """Return the transport behind the `send` of uvicorn or daphne; None if a middleware wraps the `send`."""
    protocol = send.args[0] if hasattr(send, "args") else getattr(send, "__self__", None)
    return getattr(protocol, "transport", None)


def socket_of(transport: Any) -> Any:
    """Return the socket of a transport of Twisted (daphne) or asyncio (uvicorn)."""
    return transport.socket if hasattr(transport, "socket") else transport.get_extra_info("socket")


@dataclass
class Subscribers:
    """The connections that are subscribed to one stream, in the form that each way of sending needs."""

    identifier: str
    sends: list[Send] = field(default_factory=list)
    transports: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    count: int = 0

    def text(self, data: str) -> str:
        """Return a message in the form in which this project sends it."""
        self.count += 1
        return (
            f'{{"identifier":{json.dumps(self.identifier)},"message":{data},'
            f'"stream_id":"bench0","epoch":"xxxxxxxxxxxx","offset":{self.count}}}'
        )


class Hub:
    """The ASGI application, which keeps the subscribers of each stream."""

    def __init__(self) -> None:
        self.streams: dict[str, Subscribers] = {}
        self.floor = Floor()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve an HTTP request or a WebSocket."""
        if scope["type"] == "websocket":
            await self.connection(receive, send)
        else:
            await self.request(scope, receive, send)

    async def connection(self, receive: Receive, send: Send) -> None:
        """Send a welcome to a client, and confirm its subscriptions."""
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "actioncable-v1-ext-json"})
        await send({"type": "websocket.send", "text": '{"type":"welcome","sid":"xxxxxxxxxxxxxxxxxxxxxxxx"}'})
        subscribers: Subscribers | None = None
        while (event := await receive())["type"] == "websocket.receive":
            identifier = json.loads(event["text"])["identifier"]
            stream = json.loads(identifier)["stream"]
            subscribers = self.streams.setdefault(stream, Subscribers(identifier))
            subscribers.sends.append(send)
            transport = transport_of(send)
            if transport is not None:
                subscribers.transports.append(transport)
                subscribers.numbers.append(socket_of(transport).fileno())
            text = json.dumps({"type": "confirm_subscription", "identifier": identifier})
            await send({"type": "websocket.send", "text": text})
        if subscribers is not None:
            self.streams = {}  # clients disconnect only at the end of a measurement

    async def request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Broadcast, or return the CPU time that the way `floor` has taken."""
        status, answer = 201, b""
        if scope["path"] == "/_broadcast":
            parts = [await receive()]
            while parts[-1].get("more_body"):
                parts.append(await receive())
            body = json.loads(b"".join(part["body"] for part in parts))
            way = parse_qs(scope["query_string"].decode()).get("way", ["send"])[0]
            subscribers = self.streams.get(body["stream"])
            if subscribers is not None:
                await self.broadcast(subscribers, subscribers.text(body["data"]), way)
        else:
            answer = json.dumps({"seconds": self.floor.seconds, "failed": self.floor.failed}).encode()
            status = 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    async def broadcast(self, subscribers: Subscribers, text: str, way: str) -> None:
        """Send a message to all subscribers in one of the ways that the benchmark compares."""
        if way == "send":
            for send in subscribers.sends:
                await send({"type": "websocket.send", "text": text})
            return
        frame = text_frame(text.encode())
        if way == "floor":
            self.floor.send(subscribers.numbers, frame)
        elif way == "write":
            for transport in subscribers.transports:
                transport.write(frame)
        else:
            for transport in subscribers.transports:
                sent = transport.socket.send(frame) if not transport.dataBuffer else 0
                if sent < len(frame):
                    transport.write(frame[sent:])


application = Hub()
