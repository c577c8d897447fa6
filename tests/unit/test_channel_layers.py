"""A `CableConsumer` with a channel layer in memory. tests/integration/test_channel_layers.py uses real layers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from channels.layers import InMemoryChannelLayer, channel_layers
from django.test import override_settings

from reliable_cable import CableConsumer
from reliable_cable.consumer import get_hub
from tests.unit.wire import Client

LAYERS = {"default": {"BACKEND": f"{__name__}.Layer"}}


class Layer(InMemoryChannelLayer):  # type: ignore[misc]  # Channels is untyped
    """A layer that forgets a channel when its receiver is cancelled, like channels-redis, and that can fail."""

    failures = 0

    async def receive(self, channel: str) -> Any:
        """Receive a message, or fail."""
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the layer is down")
        return await super().receive(channel)


class Layered(CableConsumer):
    """Joins a group when it connects."""

    channel_layer_alias = "default"
    rejects = False
    received: asyncio.Queue[Any]

    async def connect(self) -> None:
        """Join the group, and reject the connection if the test asks for it."""
        await self.channel_layer.group_add("notes", self.channel_name)
        if self.rejects:
            self.reject_connection()

    async def note(self, message: dict[str, Any]) -> None:
        """Record a message of the group."""
        if message["text"] == "raise":
            raise RuntimeError("the handler fails")
        self.received.put_nowait((self.session and self.session.sid, message["text"]))


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    # After its last use, presence is refreshed for longer than the time to live. A short one makes the tests fast.
    cable = {"ENGINE": "memory", "PRESENCE_TTL": 0.3}
    with override_settings(RELIABLE_CABLE=cable, CHANNEL_LAYERS=LAYERS):
        yield


@pytest.fixture
def consumer() -> type[Layered]:
    return type("Consumer", (Layered,), {"received": asyncio.Queue()})


@pytest.fixture
def layer() -> Layer:
    layer = channel_layers["default"]
    assert isinstance(layer, Layer)
    return layer


async def next_note(consumer: type[Layered]) -> Any:
    return await asyncio.wait_for(consumer.received.get(), 5)


async def test_messages_of_a_group_joined_in_connect_are_received(consumer: type[Layered], layer: Layer) -> None:
    async with Client(consumer=consumer) as client:
        await layer.group_send("notes", {"type": "note", "text": "hi"})
        assert await next_note(consumer) == (client.sid, "hi")


async def test_a_message_is_handled_after_the_connection_was_accepted(consumer: type[Layered], layer: Layer) -> None:
    async def connect(self: Layered) -> None:
        await self.channel_layer.send(self.channel_name, {"type": "note", "text": "early"})
        await asyncio.sleep(0)

    with mock.patch.object(consumer, "connect", connect):
        async with Client(consumer=consumer) as client:
            assert await next_note(consumer) == (client.sid, "early")


async def test_receiving_continues_after_errors_of_the_layer_and_of_handlers(
    consumer: type[Layered], layer: Layer, caplog: pytest.LogCaptureFixture
) -> None:
    layer.failures = 3
    with mock.patch("reliable_cable.consumer.BACKGROUND_RETRY_DELAY", 0):
        async with Client(consumer=consumer) as client:
            for message in ({"type": "unknown"}, {"type": "note", "text": "raise"}, {"type": "note", "text": "hi"}):
                await layer.group_send("notes", message)
            assert await next_note(consumer) == (client.sid, "hi")
    assert caplog.text.count("The channel layer cannot be read") == 1
    assert caplog.text.count("A message from the channel layer could not be handled") == 2


@pytest.mark.parametrize("rejects", [False, True])
async def test_a_closed_connection_leaves_no_task_and_no_channel(
    consumer: type[Layered], layer: Layer, rejects: bool
) -> None:
    tasks = asyncio.all_tasks()
    consumer.rejects = rejects
    async with Client(consumer=consumer) as client:
        assert (client.welcome["type"] == "disconnect") is rejects
    hub = get_hub()
    while hub.connections or layer.channels or asyncio.all_tasks() - tasks - set(hub.tasks.pending):  # noqa: ASYNC110
        await asyncio.sleep(0)
