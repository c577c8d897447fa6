"""`to_others=True` in an action excludes the client that called it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable import Channel, action
from reliable_cable.channel import registry

from .wire import Client, identifier

ROOM = identifier("Room")


@pytest.fixture(autouse=True)
def channels(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}

    class Room(Channel):
        def subscribed(self) -> None:
            self.stream_for("lobby")

        @action
        def say(self, data: dict[str, Any]) -> None:
            Room.broadcast_to("lobby", data["text"], to_others=data["to_others"])

        @action
        async def say_async(self, data: dict[str, Any]) -> None:
            await Room.abroadcast_to("lobby", data["text"], to_others=data["to_others"])

    yield
    del registry["Room"]


@pytest.mark.parametrize("name", ["say", "say_async"])
async def test_the_client_that_calls_an_action_is_excluded(name: str) -> None:
    async with Client() as writer, Client() as reader:
        for client in (writer, reader):
            await client.subscribe(ROOM)
        await writer.perform(ROOM, name, text="to the others", to_others=True)
        assert (await reader.receive())["message"] == "to the others"
        await reader.perform(ROOM, name, text="to the writer", to_others=True)
        assert (await writer.receive())["message"] == "to the writer"
        await writer.perform(ROOM, name, text="to all", to_others=False)
        assert [(await client.receive())["message"] for client in (writer, reader)] == ["to all", "to all"]
