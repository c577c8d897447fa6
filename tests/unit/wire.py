"""A client of `CableConsumer` that needs no server, based on Channels' communicator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from channels.testing import WebsocketCommunicator

from reliable_cable.channel import Channel, registry
from reliable_cable.conf import CONTROL_STREAM
from reliable_cable.connection.connection import Connection
from reliable_cable.consumer import CableConsumer, get_hub
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.streams.base import Message

EXTENDED = "actioncable-v1-ext-json"
BASE = "actioncable-v1-json"


def identifier(channel: str, **params: Any) -> str:
    """Return an identifier as a client writes it."""
    return json.dumps({"channel": channel, **params})


def connection_of(client: Client) -> Connection:
    """Return the connection object that the hub has for a client."""
    connection = get_hub().connections.find(client.sid)
    assert isinstance(connection, Connection)
    return connection


async def leave_session(client: Client, *identifiers: str) -> str:
    """Connect, subscribe and disconnect; return the id of the session."""
    async with client:
        for each in identifiers:
            await client.subscribe(each)
    return client.sid


@contextmanager
def registered(**channels: type[Channel]) -> Iterator[None]:
    """Register channels by their names during a block."""
    for name, channel in channels.items():
        registry[name] = [channel]
    try:
        yield
    finally:
        for name in channels:
            del registry[name]


async def until(condition: Callable[[], object]) -> None:
    """Run the event loop until a condition is true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it waits for iterations of the event loop
            await asyncio.sleep(0)


async def run_event_loop() -> None:
    """Run 50 iterations of the event loop: enough for code that waits for nothing outside of this process."""
    for _ in range(50):
        await asyncio.sleep(0)


async def send_control_message(message: Any) -> None:
    """Send a control message to all processes."""
    await get_engine().streams.aappend([(CONTROL_STREAM, Message(json.dumps(message)))])
    await run_event_loop()


class Communicator(WebsocketCommunicator):  # type: ignore[misc]  # Channels has no types
    """A communicator that by default waits longer than one second, because the machine may be busy."""

    def connect(self, timeout: float = 30) -> Any:
        self.future.add_done_callback(self._note_end)
        return super().connect(timeout)

    def disconnect(self, code: int = 1000, timeout: float = 30) -> Any:
        return super().disconnect(code, timeout)

    def wait(self, timeout: float = 30) -> Any:
        return super().wait(timeout)

    async def receive_output(self, timeout: float = 30) -> Any:  # noqa: ASYNC109 - the parameter of the base class
        output = await super().receive_output(timeout)
        return self.future.result() if output is None else output

    def _note_end(self, future: asyncio.Future[None]) -> None:
        """If the application has ended with an error, let `receive_output` raise it without waiting any longer."""
        if not future.cancelled() and future.exception() is not None:
            self.output_queue.put_nowait(None)


class Client:
    """A client with one connection. `async with` opens and closes it.

    Args:
        sid: the id of the session to restore.
        protocol: the offered subprotocol.
        consumer: the consumer class under test.
        scope: more items of the ASGI scope, such as `user`.
        query: more parameters, appended to the query string.
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
        self.communicator = Communicator(consumer.as_asgi(), path, subprotocols=[protocol])
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
        """The id of the session."""
        return str(self.welcome["sid"])

    async def receive(self) -> Any:
        """Return the next frame."""
        return json.loads(await self.communicator.receive_from(timeout=30))

    async def receive_many(self, count: int) -> list[Any]:
        """Return this number of frames."""
        return [await self.receive() for _ in range(count)]

    async def send(self, command: str, identifier: str, **body: Any) -> None:
        """Send a command."""
        await self.send_text(json.dumps({"command": command, "identifier": identifier, **body}))

    async def send_text(self, text: str) -> None:
        """Send a text frame."""
        await self.communicator.send_to(text_data=text)

    async def perform(self, identifier: str, action: str, **data: Any) -> None:
        """Call an action of a channel."""
        await self.send("message", identifier, data=json.dumps({"action": action, **data}))

    async def subscribe(self, identifier: str, **body: Any) -> None:
        """Subscribe and wait for the confirmation. Frames before it are dropped."""
        await self.send("subscribe", identifier, **body)
        while (await self.receive()).get("type") != "confirm_subscription":
            pass

    async def quiet(self) -> bool:
        """Return whether the client is sent nothing before the response to a ping."""
        await self.send_text('{"command":"ping"}')
        return bool(await self.receive() == {"type": "pong"})
