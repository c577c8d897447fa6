"""The socket of a client in tests: the frames that it sends to an ASGI application, and receives from it."""

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

_Application: Any = ApplicationCommunicator  # it has no types

#: How long, in seconds, a client waits for a frame that a test expects.
TIMEOUT: Final = 5.0


def is_message(frame: Frame) -> bool:
    """Return whether a frame has a message: a broadcast, a transmission or a whisper."""
    return "message" in frame and "type" not in frame


class ClientSocket:
    """A WebSocket to an ASGI application in this event loop. It can be opened again after it was closed."""

    def __init__(self) -> None:
        self._running: Any = None
        #: The frames that were received and not taken yet, without pings.
        self._inbox: list[Frame] = []
        #: The server's side of the connection; None before the welcome.
        self.connection: Connection | None = None
        #: The subprotocol that the server has chosen; None before that.
        self.subprotocol: str | None = None
        #: The reason in the server's `disconnect` frame, or `""`.
        self.disconnect_reason = ""
        #: The code with which the connection was closed; None while it is open.
        self.close_code: int | None = None
        #: The errors of the handlers. A client does not see them.
        self.errors: list[BaseException] = []

    @property
    def refusal(self) -> str:
        """Why the client was refused, for a reader of the test's output."""
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
        """Close the connection if it is open, and wait until the server has handled that.

        Args:
            code: the close code: 1000 if the client disconnects, 1001 if the page is closed, 1006 if the network fails.
        """
        running, self._running, self.connection = self._running, None, None
        if running is not None:
            if not running.future.done():
                await running.send_input({"type": "websocket.disconnect", "code": code})
            await running.wait(TIMEOUT)
            self.close_code = code if self.close_code is None else self.close_code

    async def send(self, command: str, **body: Any) -> None:
        """Send a frame with a command: `send("whisper", identifier=…, data=…)`.

        Raises:
            ConnectionError: there is no connection.
        """
        if self._running is None:
            raise ConnectionError("The client is not connected.")
        text = json.dumps({"command": command, **body})
        await self._running.send_input({"type": "websocket.receive", "text": text})

    async def settle(self) -> None:
        """Wait until the server has handled all commands of this client, and has sent the frames that they cause.

        Raises:
            AssertionError: this took more than 5 seconds.
        """
        connection = self.connection
        try:
            if connection is not None:
                await self._ping()  # after this, the server has queued the commands
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
        """Remove and return the received frames that are wanted."""
        taken = [frame for frame in self._inbox if wanted(frame)]
        self._inbox = [frame for frame in self._inbox if not wanted(frame)]
        return taken

    async def take(self, wanted: Callable[[Frame], bool], name: str) -> Frame:
        """Remove and return the first frame that is wanted. If it was not received yet, wait for it.

        Args:
            wanted: returns whether a frame is wanted.
            name: what is wanted, for the error.

        Raises:
            AssertionError: there was no such frame within `TIMEOUT`. The message shows the others.
            ConnectionError: there is no connection, or the server closed it.
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
        """Wait for the next message of the application, and handle it."""
        if self._running is None:
            raise ConnectionError("The client is not connected.")
        reading = asyncio.ensure_future(self._running.output_queue.get())
        try:
            await asyncio.wait([reading, self._running.future], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not reading.done():
                reading.cancel()
        if not reading.done():
            self._running.future.result()  # raises the error of the application
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
        """Handle a frame that was received. A subclass overrides this."""

    def _receive(self, frame: Frame) -> None:
        if frame.get("type") == MessageType.PING:
            return
        if frame.get("type") == MessageType.DISCONNECT:
            self.disconnect_reason = frame["reason"]
        self.observe(frame)
        self._inbox.append(frame)
