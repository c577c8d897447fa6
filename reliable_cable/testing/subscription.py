"""`CableSubscription`, the subscription of a test client to a channel."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from reliable_cable.channel import Channel
from reliable_cable.protocol.constants import ANSWER, CALL, MessageType

from .client_socket import ClientSocket, Frame, is_message


class CallFailed(Exception):
    """Raised if an action was called, but there is no result.

    Args:
        message: the error message.
        reason: `"refused"`, `"failed"`, `"unknown_action"` or `"not_subscribed"`. These are also the reasons of a
            `CallError` in a browser.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def identifier_of(channel: type[Channel] | str, params: Mapping[str, Any] | None) -> str:
    """Return the identifier of a subscription, as the JSON text that a client sends.

    Args:
        channel: the channel class, or its name.
        params: the parameters of the subscription.
    """
    return json.dumps({"channel": channel if isinstance(channel, str) else channel.name, **(params or {})})


class CableSubscription:
    """The subscription of a test client to a channel. `CableCommunicator.subscribe` returns it.

    Args:
        socket: the test client that has the subscription.
        identifier: the identifier of the subscription, as a JSON text.
    """

    def __init__(self, socket: ClientSocket, identifier: str) -> None:
        self._socket = socket
        self.identifier = identifier
        #: Whether the server has confirmed the subscription.
        self.confirmed = False
        #: For each stream id, the position of the last received message, in the form of a history request.
        self.positions: dict[str, dict[str, Any]] = {}

    async def subscribe(self, *, since: float | None = None) -> bool:
        """Subscribe. For each stream with a received message, also request the messages after the last one.

        Args:
            since: a time in seconds since 1970. If the client has received no message of a stream, the messages of this
                stream after this time are requested.

        Returns:
            True if the subscription was confirmed and no requested message is lost.
        """
        request = self._history_request(since)
        body = {"history": request} if request else {}
        await self._socket.send("subscribe", identifier=self.identifier, **body)
        answer = await self._answer(MessageType.CONFIRM_SUBSCRIPTION, MessageType.REJECT_SUBSCRIPTION)
        self.confirmed = answer == MessageType.CONFIRM_SUBSCRIPTION
        complete = not (self.confirmed and request) or await self._history_answer()
        await self._socket.settle()
        return self.confirmed and complete

    async def unsubscribe(self) -> None:
        """Unsubscribe, and wait until the server has handled the command."""
        await self._socket.send("unsubscribe", identifier=self.identifier)
        await self._socket.settle()
        self.confirmed = False

    async def perform(self, action: str, data: Mapping[str, Any] | None = None) -> None:
        """Call an action without asking for its result, and wait until the server has handled the call.

        Args:
            action: the name by which clients call the action.
            data: the arguments of the action, as JSON values.
        """
        await self._perform({**(data or {}), "action": action})

    async def call(self, action: str, data: Mapping[str, Any] | None = None) -> Any:
        """Call an action and return its result, as `AnyCable.call` does in a browser.

        Args:
            action: the name by which clients call the action.
            data: the arguments of the action, as JSON values.

        Raises:
            CallFailed: the action has no result. If the action raised an error, it is the `__cause__` of `CallFailed`.
        """
        call = secrets.token_hex(8)
        raised = len(self._socket.errors)
        await self._perform({**(data or {}), "action": action, CALL: call})

        def wanted(frame: Frame) -> bool:
            return isinstance(frame.get("message"), dict) and frame["message"].get(ANSWER) == call

        answer = (await self._socket.take(wanted, f"answer of the action {action!r}"))["message"]
        if "error" in answer:
            cause = next(iter(self._socket.errors[raised:]), None)
            raise CallFailed(f"The action {action!r} has no result: {answer['error']}.", answer["error"]) from cause
        return answer["result"]

    async def _perform(self, data: Mapping[str, Any]) -> None:
        await self._socket.send("message", identifier=self.identifier, data=json.dumps(data))
        await self._socket.settle()

    async def history(self, *, since: float | None = None) -> bool:
        """For each stream, request the messages after the last one that the client has received.

        Args:
            since: a time in seconds since 1970. If the client has received no message of a stream, the messages of this
                stream after this time are requested.

        Returns:
            True if no requested message is lost.
        """
        request = {"streams": {}, **self._history_request(since)}
        await self._socket.send("history", identifier=self.identifier, history=request)
        return await self._history_answer()

    async def receive(self) -> Any:
        """Return the data of the next message for this subscription.

        Raises:
            AssertionError: no message arrived within 15 seconds. The error lists the received frames.
            ConnectionError: the server closed the connection.
        """
        frame = await self._socket.take(
            lambda frame: is_message(frame) and frame["identifier"] == self.identifier, f"message for {self.identifier}"
        )
        return frame["message"]

    def observe(self, frame: Frame) -> None:
        """Store the position of a received message in `positions`."""
        if "stream_id" in frame:
            self.positions[frame["stream_id"]] = {"epoch": frame["epoch"], "offset": frame["offset"]}

    def _history_request(self, since: float | None) -> dict[str, Any]:
        request: dict[str, Any] = {"streams": self.positions} if self.positions else {}
        return request if since is None else {"streams": {}, **request, "since": since}

    async def _history_answer(self) -> bool:
        answer = await self._answer(MessageType.CONFIRM_HISTORY, MessageType.REJECT_HISTORY)
        return answer == MessageType.CONFIRM_HISTORY

    async def _answer(self, *types: str) -> str:
        """Wait for a frame that has one of these types and belongs to this subscription. Return its type."""
        frame = await self._socket.take(
            lambda frame: frame.get("identifier") == self.identifier and frame.get("type") in types,
            f"{' or '.join(types)} for {self.identifier}",
        )
        return str(frame["type"])
