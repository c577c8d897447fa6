"""Applications that only decode and answer the messages of clients."""

from __future__ import annotations

import json
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer

PROTOCOL = "actioncable-v1-ext-json"
WELCOME = '{"type":"welcome","sid":"xxxxxxxxxxxxxxxxxxxxxxxx"}'


def answer(text: str) -> str | None:
    """Return the answer to a frame; None if there is none."""
    frame = json.loads(text)
    if frame["command"] == "subscribe":
        return json.dumps({"type": "confirm_subscription", "identifier": frame["identifier"]})
    if json.loads(frame["data"])["action"] == "answer":
        return json.dumps({"identifier": frame["identifier"], "message": {"answer": 1}})
    return None


async def receiver(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve a connection with plain ASGI."""
    await receive()
    await send({"type": "websocket.accept", "subprotocol": PROTOCOL})
    await send({"type": "websocket.send", "text": WELCOME})
    while (event := await receive())["type"] == "websocket.receive":
        text = answer(event["text"])
        if text is not None:
            await send({"type": "websocket.send", "text": text})


async def receive_post(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Decode the body of a request, and answer it, with plain ASGI."""
    body = b""
    more = True
    while more:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    json.loads(body)
    await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Receiver(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels is untyped
    """Serves a connection with a consumer of Channels."""

    async def connect(self) -> None:
        """Accept the connection, and send a welcome."""
        await self.accept(PROTOCOL)
        await self.send(text_data=WELCOME)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Decode a frame, and answer it."""
        text = answer(text_data or "")
        if text is not None:
            await self.send(text_data=text)
