"""A client of `CableConsumer` without a server: Channels' communicator, in JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any

from channels.testing import WebsocketCommunicator

from reliable_cable.connection.connection import Connection
from reliable_cable.consumer import CableConsumer, get_hub

EXTENDED = "actioncable-v1-ext-json"
BASE = "actioncable-v1-json"


def identifier(channel: str, **params: Any) -> str:
    """Return an identifier as a client writes it."""
    return json.dumps({"channel": channel, **params})


def connection_of(client: Client) -> Connection:
    """Return the server side of a client."""
    connection = get_hub().connections.get(client.sid)
    assert isinstance(connection, Connection)
    return connection


async def until(condition: Callable[[], object]) -> None:
    """Run the event loop until a condition is true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the loop's turns are what is waited for
            await asyncio.sleep(0)


class Client:
    """One connection; `async with` opens and closes it.

    Args:
        sid: the session to be restored.
        protocol: the subprotocol that is offered.
        consumer: the consumer class under test.
        scope: more of the ASGI scope: `user`, for one.
    """

    def __init__(
        self,
        sid: str = "",
        *,
        protocol: str = EXTENDED,
        consumer: type[CableConsumer] = CableConsumer,
        scope: dict[str, Any] | None = None,
        query: str = "",
    ) -> None:
        path = "/cable?" + "&".join(part for part in (f"sid={sid}" if sid else "", query) if part)
        self.communicator = WebsocketCommunicator(consumer.as_asgi(), path, subprotocols=[protocol])
        self.communicator.scope.update(scope or {})
        self.welcome: dict[str, Any] = {}

    async def __aenter__(self) -> Client:
        connected, _ = await self.communicator.connect()
        assert connected
        self.welcome = await self.receive()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.communicator.disconnect()

    @property
    def sid(self) -> str:
        """The session's id."""
        return str(self.welcome["sid"])

    async def receive(self) -> Any:
        """Return the next frame."""
        return json.loads(await self.communicator.receive_from(timeout=5))

    async def receive_many(self, count: int) -> list[Any]:
        """Return the next frames."""
        return [await self.receive() for _ in range(count)]

    async def send(self, command: str, identifier: str, **body: Any) -> None:
        """Send a command."""
        await self.send_text(json.dumps({"command": command, "identifier": identifier, **body}))

    async def send_text(self, text: str) -> None:
        """Send a frame as it is."""
        await self.communicator.send_to(text_data=text)

    async def perform(self, identifier: str, action: str, **data: Any) -> None:
        """Call an action."""
        await self.send("message", identifier, data=json.dumps({"action": action, **data}))

    async def subscribe(self, identifier: str, **body: Any) -> None:
        """Subscribe, and wait until that was confirmed; what precedes the confirmation is dropped."""
        await self.send("subscribe", identifier, **body)
        while (await self.receive()).get("type") != "confirm_subscription":
            pass

    async def quiet(self) -> bool:
        """Whether nothing more comes: a ping of ours is answered first."""
        await self.send_text('{"command":"ping"}')
        return bool(await self.receive() == {"type": "pong"})
