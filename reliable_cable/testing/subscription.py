"""A subscription of a client in tests."""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from reliable_cable.channel import Channel
from reliable_cable.protocol.constants import ANSWER, CALL, MessageType

from .client_socket import ClientSocket, Frame, is_message


class CallFailed(Exception):
    """An action has no result.

    Args:
        message: what was called, and why there is no result.
        reason: `"refused"`, `"failed"`, `"unknown_action"` or `"not_subscribed"`, as in the `CallError` of a page.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def identifier_of(channel: type[Channel] | str, params: Mapping[str, Any] | None) -> str:
    """Return the identifier of a subscription, as a client writes it.

    Args:
        channel: the channel class, or its name.
        params: the parameters of the subscription.
    """
    return json.dumps({"channel": channel if isinstance(channel, str) else channel.name, **(params or {})})


class CableSubscription:
    """A subscription of a `CableCommunicator`, whose method `subscribe` returns it.

    Args:
        socket: the socket of the client.
        identifier: the identifier, as JSON text.
    """

    def __init__(self, socket: ClientSocket, identifier: str) -> None:
        self._socket = socket
        self.identifier = identifier
        #: Whether the server has confirmed the subscription.
        self.confirmed = False
        #: The position of the last message of each stream, by stream id, in the form in which clients send it.
        self.positions: dict[str, dict[str, Any]] = {}

    async def subscribe(self, *, since: float | None = None) -> bool:
        """Subscribe, and return whether the subscription was confirmed, and no requested message is lost.

        Args:
            since: request the messages since this time, in seconds since 1970.
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
        """Unsubscribe, and wait until the server has handled that."""
        await self._socket.send("unsubscribe", identifier=self.identifier)
        await self._socket.settle()
        self.confirmed = False

    async def perform(self, action: str, data: Mapping[str, Any] | None = None) -> None:
        """Call an action without asking for an answer, and wait until the server has handled it.

        Args:
            action: the name that clients use for the action.
            data: the data, as JSON values.
        """
        await self._perform({**(data or {}), "action": action})

    async def call(self, action: str, data: Mapping[str, Any] | None = None) -> Any:
        """Call an action and return its result, as `AnyCable.call` does in a page.

        Args:
            action: the name that clients use for the action.
            data: the data, as JSON values.

        Raises:
            CallFailed: the action has no result. If it raised an error, that is the cause.
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
        """Request the messages after the last ones that were received, and return whether none of them is lost.

        Args:
            since: request the messages since this time, in seconds since 1970, of streams of which nothing was
                received.
        """
        request = {"streams": {}, **self._history_request(since)}
        await self._socket.send("history", identifier=self.identifier, history=request)
        return await self._history_answer()

    async def receive(self) -> Any:
        """Return the data of the next message for this subscription.

        Raises:
            AssertionError: there was none within 5 seconds. The error shows what was received instead.
            ConnectionError: the server closed the connection.
        """
        frame = await self._socket.take(
            lambda frame: is_message(frame) and frame["identifier"] == self.identifier, f"message for {self.identifier}"
        )
        return frame["message"]

    def observe(self, frame: Frame) -> None:
        """Remember the position of a message that was received for this subscription."""
        if "stream_id" in frame:
            self.positions[frame["stream_id"]] = {"epoch": frame["epoch"], "offset": frame["offset"]}

    def _history_request(self, since: float | None) -> dict[str, Any]:
        request: dict[str, Any] = {"streams": self.positions} if self.positions else {}
        return request if since is None else {"streams": {}, **request, "since": since}

    async def _history_answer(self) -> bool:
        answer = await self._answer(MessageType.CONFIRM_HISTORY, MessageType.REJECT_HISTORY)
        return answer == MessageType.CONFIRM_HISTORY

    async def _answer(self, *types: str) -> str:
        """Return the type of the next frame for this subscription that has one of these types."""
        frame = await self._socket.take(
            lambda frame: frame.get("identifier") == self.identifier and frame.get("type") in types,
            f"{' or '.join(types)} for {self.identifier}",
        )
        return str(frame["type"])
