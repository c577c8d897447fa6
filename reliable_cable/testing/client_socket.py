"""The WebSocket of a test client, which exchanges frames with an ASGI application without a server."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from asgiref.testing import ApplicationCommunicator

from reliable_cable.connection.connection import Connection
from reliable_cable.connection.subscription import Subscription
from reliable_cable.consumer import get_hub
from reliable_cable.protocol.constants import CLOSE_NORMAL, MessageType

Frame = dict[str, Any]

_Application: Any = ApplicationCommunicator  # asgiref has no types for this class

#: How long, in seconds, to wait for a frame that a test expects.
TIMEOUT: Final = 15.0


def is_message(frame: Frame) -> bool:
    """Return whether a frame contains a broadcast, a transmission or a whisper."""
    return "message" in frame and "type" not in frame


class ClientSocket:
    """A WebSocket to an ASGI application that runs in the same event loop. It can be reopened after it was closed."""

    def __init__(self) -> None:
        self._running: Any = None
        #: The received frames that the test has not asked for yet, without pings.
        self._inbox: list[Frame] = []
        #: The server's object for this connection; None before the welcome.
        self.connection: Connection | None = None
        #: The subprotocol that the server has chosen; None before the handshake.
        self.subprotocol: str | None = None
        #: The reason in the server's `disconnect` frame; `""` if there was no such frame.
        self.disconnect_reason = ""
        #: The close code of the connection; None while it is open.
        self.close_code: int | None = None
        #: The errors that handlers have raised. A real client does not receive them.
        self.errors: list[BaseException] = []

    @property
    def refusal(self) -> str:
        """The reason for which the client was refused, as a string for error messages."""
        return self.disconnect_reason or f"closed with the code {self.close_code} before the welcome; see the log"

    async def open(self, application: Any, scope: Mapping[str, Any]) -> Frame | None:
        """Connect, and return the welcome frame; None if the client was refused."""
        self.subprotocol, self.disconnect_reason, self.close_code = None, "", None
        self._running = _Application(application, dict(scope))
        await self._running.send_input({"type": "websocket.connect"})
        try:
            welcome = await self.take(lambda frame: frame.get("type") == MessageType.WELCOME, "welcome")
        except ConnectionError:
            return None
        connection = get_hub().connections.find(welcome["sid"])
        if isinstance(connection, Connection):
            self.connection = connection
            connection.on_error = self.errors.append
        return welcome

    async def disconnect(self, code: int = CLOSE_NORMAL) -> None:
        """Close the connection if it is open, and wait until the server has handled the close.

        Args:
            code: the close code. Browsers use 1000 when the script disconnects, 1001 when the web page is closed, and
                1006 when the network fails.
        """
        running, self._running, self.connection = self._running, None, None
        if running is not None:
            if not running.future.done():
                await running.send_input({"type": "websocket.disconnect", "code": code})
            await running.wait(TIMEOUT)
            self.close_code = code if self.close_code is None else self.close_code

    async def send(self, command: str, **body: Any) -> None:
        """Send a frame with a command. An example is `send("whisper", identifier=…, data=…)`.

        Raises:
            ConnectionError: the client is not connected.
        """
        if self._running is None:
            raise ConnectionError("The client is not connected.")
        text = json.dumps({"command": command, **body})
        await self._running.send_input({"type": "websocket.receive", "text": text})

    async def settle(self) -> None:
        """Wait until the server has handled all commands of this client and has sent the resulting frames.

        Raises:
            AssertionError: a command took more than 15 seconds.
        """
        connection = self.connection
        try:
            if connection is not None:
                await self._ping()  # the pong proves that the server has queued all commands
                if not connection.closed:
                    async with asyncio.timeout(TIMEOUT):
                        await connection.commands.finished()
                        for subscription in tuple(connection.subscriptions.values()):
                            assert isinstance(subscription, Subscription)  # noqa: S101 - for the type checker
                            await subscription.caught_up()
                await self._ping()
        except ConnectionError:
            return  # the server has closed the connection
        except TimeoutError:
            raise AssertionError(f"A handler is still running after {TIMEOUT:g} s.") from None

    async def _ping(self) -> None:
        await self.send("ping")
        await self.take(lambda frame: frame.get("type") == MessageType.PONG, "pong")

    def take_all(self, wanted: Callable[[Frame], bool]) -> list[Frame]:
        """Remove and return all received frames for which `wanted` returns True."""
        taken = [frame for frame in self._inbox if wanted(frame)]
        self._inbox = [frame for frame in self._inbox if not wanted(frame)]
        return taken

    async def take(self, wanted: Callable[[Frame], bool], name: str) -> Frame:
        """Wait until a frame is received for which `wanted` returns True, then remove it and return it.

        Args:
            wanted: a function that is called with each received frame.
            name: a description of the frame, for the error message.

        Raises:
            AssertionError: no such frame was received within `TIMEOUT`. The message lists the received frames.
            ConnectionError: the client is not connected, or the server closed the connection.
        """
        checked = 0
        try:
            async with asyncio.timeout(TIMEOUT):
                while True:
                    for index, frame in enumerate(self._inbox[checked:], checked):
                        if wanted(frame):
                            return self._inbox.pop(index)
                    checked = len(self._inbox)
                    await self._read()
        except TimeoutError:
            others = "".join(f"\n  {frame}" for frame in self._inbox) or " nothing"
            errors = "".join(f"\nA handler raised {error!r}." for error in self.errors)
            raise AssertionError(f"No {name} was received in {TIMEOUT:g} s, but:{others}{errors}") from None

    async def _read(self) -> None:
        """Wait for the next ASGI message of the application, and handle it."""
        if self._running is None:
            raise ConnectionError("The client is not connected.")
        reading = asyncio.ensure_future(self._running.output_queue.get())
        try:
            await asyncio.wait([reading, self._running.future], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not reading.done():
                reading.cancel()
        if not reading.done():
            self._running.future.result()  # this raises the error of the application, if there is one
            raise self._closed()
        message = reading.result()
        match message["type"]:
            case "websocket.accept":
                self.subprotocol = message.get("subprotocol")
            case "websocket.send":
                self._receive(json.loads(message["text"]))
            case "websocket.close":
                self.close_code = message.get("code", CLOSE_NORMAL)
                await self._running.send_input({"type": "websocket.disconnect", "code": self.close_code})
                raise self._closed()

    def _closed(self) -> ConnectionError:
        reason = f" ({self.disconnect_reason})" if self.disconnect_reason else ""
        return ConnectionError(f"The server closed the connection{reason}.")

    def observe(self, frame: Frame) -> None:
        """Handle a received frame that is not a ping. This method does nothing; a subclass may override it."""

    def _receive(self, frame: Frame) -> None:
        if frame.get("type") == MessageType.PING:
            return
        if frame.get("type") == MessageType.DISCONNECT:
            self.disconnect_reason = frame["reason"]
        self.observe(frame)
        self._inbox.append(frame)
