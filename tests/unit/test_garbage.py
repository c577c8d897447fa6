"""What a connection had is freed when it has gone, not by the garbage collector: a full collection stalls everybody."""

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
from reliable_cable.connection.subscribed_stream import SubscribedStream
from reliable_cable.connection.subscription import Subscription
from reliable_cable.consumer import CableConsumer
from reliable_cable.protocol.constants import DisconnectReason

from .test_paced_servers import HANDSHAKE, Uvicorn, clock
from .wire import Client, identifier, until

KINDS = (CableConsumer, Connection, Channel, Commands, Outbox, SubscribedStream, Subscription)


@pytest.fixture(autouse=True)
def _no_collection(settings: Any) -> Iterator[None]:
    settings.RELIABLE_CABLE = {"ENGINE": "memory"}
    gc.disable()
    yield
    gc.enable()


def ours() -> list[Any]:
    """Return the objects of connections."""
    # By its type: what others have left may be a proxy of something that is no more.
    return [found for found in gc.get_objects() if issubclass(type(found), KINDS)]


class FleetingChannel(Channel):
    """Has all that a channel can have."""

    def subscribed(self) -> None:
        """Begin."""
        self.stream_from("fleeting", whisper=True)
        self.presence.join("1", {})

    def shout(self) -> None:
        """Answer."""
        self.transmit({"a": 1})


@pytest.mark.parametrize("left", ["by the client", "by the server"])
async def test_a_connection_leaves_nothing(left: str) -> None:
    before = {id(found) for found in ours()}
    client = Client()
    await client.__aenter__()
    name = identifier("FleetingChannel")
    await client.subscribe(name, history={"since": 1})
    await client.perform(name, "shout")
    while "message" not in await client.receive():
        pass
    kinds = {kind for found in ours() if id(found) not in before for kind in KINDS if isinstance(found, kind)}
    assert kinds == set(KINDS)
    if left == "by the server":
        (connection,) = [found for found in ours() if isinstance(found, Connection) and id(found) not in before]
        connection.close(DisconnectReason.SERVER_RESTART)
        del connection
        while (await client.communicator.receive_output(5))["type"] != "websocket.close":
            pass
    await client.__aexit__(None, None, None)
    del client
    async with asyncio.timeout(10):
        while remaining := [found for found in ours() if id(found) not in before]:
            del remaining
            await asyncio.sleep(0)


async def test_uvicorns_protocol_goes_with_its_connection() -> None:
    with clock() as counting:
        server = Uvicorn(counting)
        wire = server.connect()
        wire.protocol.data_received(HANDSHAKE)
        await until(lambda: server.began)
        await server.idle()
        protocol = weakref.ref(wire.protocol)
        conn = weakref.ref(wire.protocol.conn)
        wire.protocol.connection_lost(None)
        wire.protocol = None  # as transports do
        await until(lambda: protocol() is None)
        assert conn() is None
