"""A `CableConsumer` that names a channel layer; tests/integration/test_channel_layers.py has real ones."""

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
    """As channels-redis, it lets go of a channel when its receiver is cancelled; and it can fail."""

    failures = 0

    async def receive(self, channel: str) -> Any:
        """Receive a message."""
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the layer is down")
        return await super().receive(channel)


class Layered(CableConsumer):
    """Joins a group when it connects."""

    channel_layer_alias = "default"
    refuses = False
    got: asyncio.Queue[Any]

    async def connect(self) -> None:
        """Join, and perhaps refuse."""
        await self.channel_layer.group_add("notes", self.channel_name)
        if self.refuses:
            self.reject_connection()

    async def note(self, message: dict[str, Any]) -> None:
        """Take a note."""
        if message["text"] == "raise":
            raise RuntimeError("as the test asked")
        self.got.put_nowait((self.session and self.session.sid, message["text"]))


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    with override_settings(RELIABLE_CABLE={"ENGINE": "memory"}, CHANNEL_LAYERS=LAYERS):
        yield


@pytest.fixture
def consumer() -> type[Layered]:
    return type("Consumer", (Layered,), {"got": asyncio.Queue()})


@pytest.fixture
def layer() -> Layer:
    layer = channel_layers["default"]
    assert isinstance(layer, Layer)
    return layer


async def heard(consumer: type[Layered]) -> Any:
    return await asyncio.wait_for(consumer.got.get(), 5)


async def test_a_group_joined_in_connect_is_heard(consumer: type[Layered], layer: Layer) -> None:
    async with Client(consumer=consumer) as client:
        await layer.group_send("notes", {"type": "note", "text": "hi"})
        assert await heard(consumer) == (client.sid, "hi")


async def test_a_message_waits_for_the_connection_to_be_accepted(consumer: type[Layered], layer: Layer) -> None:
    async def connect(self: Layered) -> None:
        await self.channel_layer.send(self.channel_name, {"type": "note", "text": "early"})
        await asyncio.sleep(0)

    with mock.patch.object(consumer, "connect", connect):
        async with Client(consumer=consumer) as client:
            assert await heard(consumer) == (client.sid, "early")


async def test_what_fails_ends_nothing(consumer: type[Layered], layer: Layer, caplog: pytest.LogCaptureFixture) -> None:
    layer.failures = 3
    with mock.patch("reliable_cable.consumer.BACKGROUND_RETRY_DELAY", 0):
        async with Client(consumer=consumer) as client:
            for message in ({"type": "unknown"}, {"type": "note", "text": "raise"}, {"type": "note", "text": "hi"}):
                await layer.group_send("notes", message)
            assert await heard(consumer) == (client.sid, "hi")
    assert caplog.text.count("The channel layer cannot be read") == 1
    assert caplog.text.count("A channel layer message failed") == 2


@pytest.mark.parametrize("refuses", [False, True])
async def test_nothing_is_left_of_a_connection_that_has_gone(
    consumer: type[Layered], layer: Layer, refuses: bool
) -> None:
    tasks = asyncio.all_tasks()
    consumer.refuses = refuses
    async with Client(consumer=consumer) as client:
        assert (client.welcome["type"] == "disconnect") is refuses
    hub = get_hub()
    while hub.connections or layer.channels or asyncio.all_tasks() - tasks - set(hub.tasks.pending):  # noqa: ASYNC110
        await asyncio.sleep(0)
