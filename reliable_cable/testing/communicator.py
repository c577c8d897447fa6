"""`CableCommunicator`: a client of the cable for tests, without a server."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final, Self
from urllib.parse import urlsplit

from asgiref.testing import ApplicationCommunicator
from channels.routing import get_default_application
from django.conf import settings

from reliable_cable.channel import Channel
from reliable_cable.connection.connection import Connection
from reliable_cable.consumer import close_hub, get_hub
from reliable_cable.protocol.constants import ANSWER, CALL, CLOSE_NORMAL, MessageType, Subprotocol

from .isolation import current_isolation

Frame = dict[str, Any]

#: How long, in seconds, a client waits for a frame that a test expects.
TIMEOUT: Final = 5.0
#: The close code of a connection that broke.
CLOSE_ABNORMAL: Final = 1006


class CallFailed(Exception):
    """An action has no result.

    Args:
        message: what was called, and why there is no result.
        reason: `"refused"`, `"failed"`, `"unknown_action"` or `"not_subscribed"`, as in the `CallError` of a page.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class CableCommunicator:
    """A client with one connection at a time, in the event loop of an async test.

    `async with` connects and disconnects it. The application is called as a server calls it, with the same frames.

    Args:
        application: the ASGI application. The default is the one that the setting `ASGI_APPLICATION` names.
        path: the path, and the query if there is one.
        user: the user of the connection, in place of the one whom the authentication middleware would find.
        client: a test client of Django, whose cookies the handshake has. So the user who is logged in there connects.
        protocol: the subprotocol that the client offers: the extended protocol, or `"actioncable-v1-json"`.
        session_id: the id of the session to restore.
        headers: more headers of the handshake.
    """

    def __init__(
        self,
        application: Any = None,
        path: str = "/cable",
        *,
        user: Any = None,
        client: Any = None,
        protocol: str = Subprotocol.EXTENDED_JSON,
        session_id: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        current_isolation()
        self._application = application or get_default_application()
        self._path = path
        self._user = user
        self._client = client
        self._protocol = protocol
        self._headers = dict(headers or {})
        self._socket: ApplicationCommunicator | None = None
        #: The frames that were received, except those that the test has taken.
        self._inbox: list[Frame] = []
        #: The connection of the server; None before the welcome.
        self.connection: Connection | None = None
        #: The id of the session, or the one to restore.
        self.session_id = session_id
        #: The subprotocol that the server has chosen; None before the handshake.
        self.subprotocol: str | None = None
        #: The identifiers of the subscriptions that were restored.
        self.restored: list[str] = []
        #: The reason of the server's `disconnect` frame, or `""`.
        self.disconnect_reason = ""
        #: The code with which the connection was closed; None while it is open.
        self.close_code: int | None = None
        #: The errors of handlers of this connection. A client does not see them.
        self.errors: list[BaseException] = []
        #: The subscriptions, by identifier.
        self.subscriptions: dict[str, CableSubscription] = {}

    async def __aenter__(self) -> Self:
        if not await self.connect():
            reason = f": {self.disconnect_reason}" if self.disconnect_reason else ""
            raise AssertionError(f"The connection was refused{reason}.")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    # -- the connection -----------------------------------------------------------------------------------------------

    async def connect(self) -> bool:
        """Connect, and return whether the client was welcomed.

        If it was refused, `disconnect_reason` and `close_code` say why. If the session was restored, `restored` has
        the identifiers of its subscriptions.
        """
        self._socket = ApplicationCommunicator(self._application, self._scope())
        self.disconnect_reason, self.close_code, self.restored = "", None, []
        await self._socket.send_input({"type": "websocket.connect"})
        try:
            welcome = await self.receive_frame(MessageType.WELCOME)
        except ConnectionError:
            return False
        self.session_id = welcome["sid"]
        self.restored = welcome.get("restored_ids", [])
        connection = get_hub().connections.find(self.session_id)
        if isinstance(connection, Connection):
            self.connection = connection
            connection.on_error = self.errors.append
        return True

    async def disconnect(self, code: int = CLOSE_NORMAL) -> None:
        """Close the connection, and wait until the server has handled that.

        Args:
            code: the close code: 1000 from a client, 1001 from a page that is closed, 1006 if the network fails.
        """
        socket, self._socket, self.connection = self._socket, None, None
        if socket is not None:
            if not socket.future.done():
                await socket.send_input({"type": "websocket.disconnect", "code": code})
            await socket.wait(TIMEOUT)
            self.close_code = code if self.close_code is None else self.close_code

    async def aclose(self) -> None:
        """Close the connection, and after the last connection of the event loop, everything that they shared."""
        await self.disconnect()
        if not len(get_hub().connections):
            await close_hub()

    async def reconnect(self) -> bool:
        """Lose the connection if it is open, and return as the client does.

        The session is restored, and the history since the last message is requested. What was not restored is
        subscribed again. The messages that the client missed can be received then.

        Returns:
            Whether the client was welcomed, and has missed nothing.
        """
        await self.disconnect(CLOSE_ABNORMAL)
        if not await self.connect():
            return False
        complete = True
        for subscription in self.subscriptions.values():
            if subscription.identifier in self.restored:
                complete = await subscription.history() and complete
            else:
                complete = await subscription.subscribe() and complete
        return complete

    def _scope(self) -> dict[str, Any]:
        url = urlsplit(self._path)
        query = "&".join(filter(None, [url.query, f"sid={self.session_id}" if self.session_id else ""]))
        # Channels' `AllowedHostsOriginValidator` refuses clients without an origin.
        headers = {"host": "testserver", "origin": "http://testserver", **self._headers}
        if self._client is not None:
            headers["cookie"] = "; ".join(f"{name}={each.value}" for name, each in self._client.cookies.items())
        scope = {
            "type": "websocket",
            "path": url.path,
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "subprotocols": [str(self._protocol)],
        }
        return scope if self._user is None else {**scope, "user": self._user}

    # -- frames -------------------------------------------------------------------------------------------------------

    async def send(self, command: str, **body: Any) -> None:
        """Send a command, such as `send("history", identifier=…, history={…})`.

        Raises:
            ConnectionError: there is no connection.
        """
        if self._socket is None:
            raise ConnectionError("The client is not connected.")
        text = json.dumps({"command": command, **body})
        await self._socket.send_input({"type": "websocket.receive", "text": text})

    async def receive_frame(self, type: str | None = None, *, identifier: str | None = None) -> Frame:  # noqa: A002
        """Return the next frame, and skip the pings.

        Args:
            type: return the next frame of this type. Frames before it can be received later.
            identifier: return the next frame for this subscription.

        Raises:
            AssertionError: there was no such frame within 5 seconds. The message shows the others.
            ConnectionError: the server closed the connection before that.
        """

        def wanted(frame: Frame) -> bool:
            return (type is None or frame.get("type") == type) and identifier in (None, frame.get("identifier"))

        kind = f"frame of the type {str(type)!r}" if type else "frame"
        return await self._take(wanted, f"{kind} for {identifier}" if identifier else kind)

    async def receive(self) -> Any:
        """Return the data of the next message of any subscription: a broadcast, a transmission or a whisper.

        Raises:
            AssertionError, ConnectionError: as for `receive_frame`.
        """
        return (await self._take(_is_message, "message"))["message"]

    async def received(self) -> list[Any]:
        """Return the data of all messages that the client was sent so far, except those that were returned before.

        The server first handles all commands. So an empty list shows that there is no message.
        """
        await self.settle()
        return [frame["message"] for frame in self._take_all(_is_message)]

    async def settle(self) -> None:
        """Wait until the server has handled all commands of this client, and has sent all that it was about to send."""
        connection = self.connection
        if connection is None:
            return
        if not connection.closed:
            await connection.commands.finished()
            for subscription in self.subscriptions.values():
                await subscription.caught_up()
        try:
            await self.send("ping")
            await self._take(lambda frame: frame.get("type") == MessageType.PONG, "pong")
        except ConnectionError:
            return  # the server has closed the connection

    def _take_all(self, wanted: Callable[[Frame], bool]) -> list[Frame]:
        """Remove and return the received frames that are wanted."""
        taken = [frame for frame in self._inbox if wanted(frame)]
        self._inbox = [frame for frame in self._inbox if not wanted(frame)]
        return taken

    async def _take(self, wanted: Callable[[Frame], bool], name: str) -> Frame:
        """Remove and return the first frame that is wanted, and wait for it if it was not received yet."""
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
        """Wait for the next message of the server."""
        if self._socket is None:
            raise ConnectionError("The client is not connected.")
        reading = asyncio.ensure_future(self._socket.output_queue.get())
        try:
            await asyncio.wait([reading, self._socket.future], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not reading.done():
                reading.cancel()
        if reading.cancelled() or not reading.done():
            self._socket.future.result()  # raises the error of the application
            raise ConnectionError("The server closed the connection.")
        message = reading.result()
        match message["type"]:
            case "websocket.accept":
                self.subprotocol = message.get("subprotocol")
            case "websocket.send":
                self._receive(json.loads(message["text"]))
            case "websocket.close":
                self.close_code = message.get("code", CLOSE_NORMAL)
                await self._socket.send_input({"type": "websocket.disconnect", "code": self.close_code})
                reason = f" ({self.disconnect_reason})" if self.disconnect_reason else ""
                raise ConnectionError(f"The server closed the connection{reason}.")

    def _receive(self, frame: Frame) -> None:
        if frame.get("type") == MessageType.PING:
            return
        if frame.get("type") == MessageType.DISCONNECT:
            self.disconnect_reason = frame["reason"]
        subscription = self.subscriptions.get(frame.get("identifier", ""))
        if subscription is not None and "stream_id" in frame:
            subscription.positions[frame["stream_id"]] = {"epoch": frame["epoch"], "offset": frame["offset"]}
        self._inbox.append(frame)

    # -- subscriptions ------------------------------------------------------------------------------------------------

    async def subscribe(
        self, channel: type[Channel] | str, params: Mapping[str, Any] | None = None, *, since: float | None = None
    ) -> CableSubscription:
        """Subscribe to a channel, and return the subscription, which is confirmed or rejected.

        Args:
            channel: the channel class, or its name.
            params: the parameters.
            since: also request the messages since this time, in seconds since 1970.

        Raises:
            AssertionError: the server did not answer within 5 seconds.
            ConnectionError: the server closed the connection.
        """
        name = channel if isinstance(channel, str) else channel.name
        identifier = json.dumps({"channel": name, **(params or {})})
        subscription = self.subscriptions.setdefault(identifier, CableSubscription(self, identifier))
        await subscription.subscribe(since=since)
        return subscription


def _is_message(frame: Frame) -> bool:
    return "message" in frame and "type" not in frame


class CableSubscription:
    """A subscription of a `CableCommunicator`. `CableCommunicator.subscribe` returns it.

    Args:
        client: the client.
        identifier: the identifier, as JSON text.
    """

    def __init__(self, client: CableCommunicator, identifier: str) -> None:
        self._client = client
        self.identifier = identifier
        #: Whether the server has confirmed the subscription. If not, it has rejected it.
        self.confirmed = False
        #: The position of the last message of each stream, by stream id, as the client sends it.
        self.positions: dict[str, dict[str, Any]] = {}

    async def subscribe(self, *, since: float | None = None) -> bool:
        """Send `subscribe`, and return whether it was confirmed, without a loss of requested messages."""
        request = self._history_request(since)
        body = {"history": request} if request else {}
        await self._client.send("subscribe", identifier=self.identifier, **body)
        answer = await self._answer(MessageType.CONFIRM_SUBSCRIPTION, MessageType.REJECT_SUBSCRIPTION)
        self.confirmed = answer == MessageType.CONFIRM_SUBSCRIPTION
        complete = not (self.confirmed and request) or await self._history_answer()
        await self._client.settle()
        return self.confirmed and complete

    async def unsubscribe(self) -> None:
        """End the subscription."""
        await self._client.send("unsubscribe", identifier=self.identifier)
        await self._client.settle()
        self.confirmed = False
        self._client.subscriptions.pop(self.identifier, None)

    async def perform(self, action: str, data: Mapping[str, Any] | None = None) -> None:
        """Call an action without an answer, and wait until the server has handled it."""
        await self._perform({**(data or {}), "action": action})

    async def call(self, action: str, data: Mapping[str, Any] | None = None) -> Any:
        """Call an action and return its result, as `AnyCable.call` does in a page.

        Raises:
            CallFailed: the action has no result. The error of the action, if it raised one, is its cause.
        """
        call = secrets.token_hex(8)
        raised = len(self._client.errors)
        await self._perform({**(data or {}), "action": action, CALL: call})

        def wanted(frame: Frame) -> bool:
            return isinstance(frame.get("message"), dict) and frame["message"].get(ANSWER) == call

        answer = (await self._client._take(wanted, f"answer of {action}"))["message"]
        if "error" in answer:
            cause = next(iter(self._client.errors[raised:]), None)
            raise CallFailed(f"The action {action!r} has no result: {answer['error']}.", answer["error"]) from cause
        return answer["result"]

    async def _perform(self, data: Mapping[str, Any]) -> None:
        await self._client.send("message", identifier=self.identifier, data=json.dumps(data))
        await self._client.settle()

    async def history(self, *, since: float | None = None) -> bool:
        """Request the messages after the last ones that were received, and return whether the server has them all.

        Args:
            since: for streams of which nothing was received, request the messages since this time, in seconds
                since 1970.
        """
        await self._client.send(
            "history", identifier=self.identifier, history=self._history_request(since) or {"streams": {}}
        )
        return await self._history_answer()

    async def receive(self) -> Any:
        """Return the data of the next message of this subscription."""
        frame = await self._client._take(
            lambda frame: _is_message(frame) and frame["identifier"] == self.identifier, f"message for {self.identifier}"
        )
        return frame["message"]

    async def caught_up(self) -> None:
        """Wait until the server has sent the history that was requested, and has made the joins."""
        connection = self._client.connection
        subscription: Any = connection.subscriptions.get(self.identifier) if connection is not None else None
        if subscription is not None:
            await subscription.caught_up()

    def _history_request(self, since: float | None) -> dict[str, Any]:
        request: dict[str, Any] = {"streams": self.positions} if self.positions else {}
        return request if since is None else {"streams": {}, **request, "since": since}

    async def _history_answer(self) -> bool:
        answer = await self._answer(MessageType.CONFIRM_HISTORY, MessageType.REJECT_HISTORY)
        return answer == MessageType.CONFIRM_HISTORY

    async def _answer(self, *types: str) -> str:
        """Return the type of the next frame for this subscription that has one of these types."""
        frame = await self._client._take(
            lambda frame: frame.get("identifier") == self.identifier and frame.get("type") in types,
            f"{' or '.join(types)} for {self.identifier}",
        )
        return str(frame["type"])
