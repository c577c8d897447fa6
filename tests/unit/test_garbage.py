"""Closed connections are freed without the garbage collector, because a full collection blocks the event loop."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from reliable_cable import Channel
from reliable_cable.connection.commands import Commands
from reliable_cable.connection.connection import Connection
from reliable_cable.connection.outbox import Outbox
from reliable_cable.connection.streams import SubscribedStream
from reliable_cable.connection.subscription import Subscription
from reliable_cable.consumer import CableConsumer
from reliable_cable.protocol.constants import DisconnectReason

from .test_paced_servers import HANDSHAKE, Uvicorn, iteration_counter
from .wire import Client, identifier, until

KINDS = (CableConsumer, Connection, Channel, Commands, Outbox, SubscribedStream, Subscription)


@pytest.fixture(autouse=True)
def _no_collection(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}
    gc.disable()
    yield
    gc.enable()


def connection_objects() -> list[Any]:
    """Return the objects that belong to connections."""
    # `isinstance` fails for weak proxies of dead objects, which other tests may have left.
    return [item for item in gc.get_objects() if issubclass(type(item), KINDS)]


class FleetingChannel(Channel):
    """Uses a stream with whispers, presence and transmissions."""

    def subscribed(self) -> None:
        """Start a stream and join its presence."""
        self.stream_from("fleeting", whisper=True)
        self.presence.join("1", {})

    def shout(self) -> None:
        """Transmit a message."""
        self.transmit({"a": 1})


@pytest.mark.parametrize("closed_by", ["client", "server"])
async def test_all_objects_of_a_closed_connection_are_freed(closed_by: str) -> None:
    before = {id(item) for item in connection_objects()}
    client = Client()
    await client.__aenter__()
    name = identifier("FleetingChannel")
    await client.subscribe(name, history={"since": 1})
    await client.perform(name, "shout")
    while "message" not in await client.receive():
        pass
    kinds = {
        kind for item in connection_objects() if id(item) not in before for kind in KINDS if isinstance(item, kind)
    }
    assert kinds == set(KINDS)
    if closed_by == "server":
        (connection,) = [
            item for item in connection_objects() if isinstance(item, Connection) and id(item) not in before
        ]
        connection.close(DisconnectReason.SERVER_RESTART)
        del connection
        while (await client.communicator.receive_output(5))["type"] != "websocket.close":
            pass
    await client.__aexit__(None, None, None)
    del client
    async with asyncio.timeout(10):
        while remaining := [item for item in connection_objects() if id(item) not in before]:
            del remaining
            await asyncio.sleep(0)


async def test_the_protocol_of_uvicorn_is_freed_with_its_connection() -> None:
    with iteration_counter() as counter:
        server = Uvicorn(counter)
        transport = server.connect()
        transport.protocol.data_received(HANDSHAKE)
        await until(lambda: server.started)
        await server.wait_for_idle()
        protocol = weakref.ref(transport.protocol)
        conn = weakref.ref(transport.protocol.conn)
        transport.protocol.connection_lost(None)
        transport.protocol = None  # transports do this when a connection is lost
        await until(lambda: protocol() is None)
        assert conn() is None
