"""Stock Channels: a consumer in a group of the channel layer. It implements only what the load client needs."""

from __future__ import annotations

import json
from typing import Any

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from django.http import HttpRequest, HttpResponse


class StockConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels is untyped
    """Joins a group, and forwards its messages to the client."""

    identifier = stream = ""

    async def connect(self) -> None:
        """Accept the connection, and send a welcome."""
        await self.accept("actioncable-v1-ext-json")
        await self.send(text_data='{"type":"welcome"}')

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """Join the group that the client subscribes to."""
        self.identifier = json.loads(text_data or "")["identifier"]
        self.stream = json.loads(self.identifier)["stream"]
        await self.channel_layer.group_add(self.stream, self.channel_name)
        await self.send(text_data=json.dumps({"type": "confirm_subscription", "identifier": self.identifier}))

    async def bench_message(self, event: dict[str, Any]) -> None:
        """Forward a message of the group to the client."""
        await self.send(text_data=json.dumps({"identifier": self.identifier, "message": event["message"]}))

    async def disconnect(self, code: int) -> None:
        """Leave the group."""
        if self.stream:
            await self.channel_layer.group_discard(self.stream, self.channel_name)


async def broadcast(request: HttpRequest) -> HttpResponse:
    """Send the message in the body of a request to a group."""
    body = json.loads(request.body)
    message = {"type": "bench.message", "message": json.loads(body["data"])}
    await get_channel_layer().group_send(body["stream"], message)
    return HttpResponse(status=201)
