"""The transport for a reader of server-sent events, who receives a response that does not end.

A `CableConsumer` serves the reader in the same way as a WebSocket client that only receives. `EventTransport` converts
the consumer's ASGI messages to the response. The subclasses in server_events.py use features of their server.
"""

import asyncio
import json
from collections import ChainMap
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, cast

from reliable_cable.protocol import messages
from reliable_cable.protocol.commands import Subscribe
from reliable_cable.protocol.constants import TRY_AGAIN, WRONG_ORIGIN, DisconnectReason
from reliable_cable.protocol.event_ids import MAX_STREAMS, EventPositions
from reliable_cable.protocol.events import Event
from reliable_cable.protocol.positions import HistoryRequest, StreamPosition

from .base import Transport

Headers = Sequence[tuple[bytes, bytes]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Refuse = Callable[[HTTPStatus, str, Mapping[str, str]], Awaitable[None]]

#: The reason that is sent to a refused reader that may reconnect, by the reason in the `websocket.close` message.
_FOR_NOW: Final = {
    TRY_AGAIN: DisconnectReason.SERVER_RESTART,
    DisconnectReason.RATE_LIMITED: DisconnectReason.RATE_LIMITED,
}
#: The headers of a response with server-sent events.
EVENT_STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    # Proxies must neither store nor compress the response. Compression would delay the events.
    "Cache-Control": "no-cache, no-store, no-transform, private",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
_HEADERS: Final[Headers] = tuple(
    (name.lower().encode(), value.encode()) for name, value in EVENT_STREAM_HEADERS.items()
)


class EventTransport(Transport):
    """The transport for a reader. This class uses nothing but ASGI.

    Args:
        send: the ASGI `send` of the request.
        refuse: a function that sends the response to a refused reader. It is called with the status, the text of the
            error, and additional keys of the JSON body.
        form: the subclass of `Event` whose format the reader has requested.
        identifiers: the identifiers of the reader's subscriptions.
        resumed: the positions in the last event id that the reader has received.
        headers: additional headers of the response.
    """

    has_sessions = False
    max_streams = MAX_STREAMS

    def __init__(
        self,
        send: Send,
        *,
        refuse: Refuse,
        form: type[Event],
        identifiers: Collection[str],
        resumed: EventPositions,
        headers: Headers = (),
    ) -> None:
        self._respond = send
        self._respond_refusal = refuse
        self.form: type[Event] = form
        self._unanswered = set(identifiers)
        self.resumed = resumed
        self._headers = headers
        self._accepted = False
        self._confirmed = False
        self.started = False
        #: The events that are queued until the response begins.
        self._kept: list[bytes] = []
        #: A future that is done when the response has ended.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def settled(self) -> bool:
        """Whether every subscription was confirmed or rejected."""
        return not self._unanswered

    def complete(self, command: Subscribe) -> Subscribe:
        """Add the positions in the reader's last event id to the history request of a `subscribe` command."""
        if not self.resumed:
            return command
        own = command.history or HistoryRequest()
        streams: Mapping[str, StreamPosition] = ChainMap(cast(Any, self.resumed), cast(Any, own.streams))
        return replace(command, history=HistoryRequest(own.since, streams))

    def answered(self, identifier: str, *, confirmed: bool) -> None:
        """Record that a subscription was confirmed or rejected. Call this before the answer is sent."""
        self._unanswered.discard(identifier)
        self._confirmed = self._confirmed or confirmed

    async def send(self, message: Mapping[str, Any]) -> None:
        """Convert an ASGI message of the consumer to a part of the response.

        The `text` of a message is an `Event`, unless `connect` has refused the client.
        """
        if self.ended.done():
            return
        match message["type"]:
            case "websocket.accept":
                self._accepted = True
            case "websocket.send":
                text = message["text"]
                if isinstance(text, Event):
                    await self._send_body(text.wire)
                else:  # `connect` has refused the client
                    reason = json.loads(text)["reason"]
                    await self._refuse(HTTPStatus.UNAUTHORIZED, "The client may not connect.", reason=reason)
            case "websocket.close" if self._accepted:
                await self._send_body(b"", more=False)
            case "websocket.close" if message.get("reason") in _FOR_NOW:
                text = messages.disconnect(_FOR_NOW[message["reason"]], reconnect=True)
                await self._start(self.form.of(text).wire, more=False)
            case "websocket.close":
                details = {"reason": WRONG_ORIGIN} if message.get("reason") == WRONG_ORIGIN else {}
                await self._refuse(HTTPStatus.FORBIDDEN, "The client may not connect.", **details)

    async def _send_body(self, body: bytes, *, more: bool = True) -> None:
        if self.started:
            if more:
                await self._respond_part(body)
            else:
                self._end()
                await self._respond({"type": "http.response.body", "body": body, "more_body": False})
        elif not more or self._confirmed:
            await self._start(body, more=more)
        elif self.settled:
            await self._refuse(HTTPStatus.FORBIDDEN, "All subscriptions were rejected.")
        else:
            self._kept.append(body)

    async def _respond_part(self, body: bytes) -> None:
        """Send a part of the body, after which more parts may follow."""
        await self._respond({"type": "http.response.body", "body": body, "more_body": True})

    async def _start(self, body: bytes, *, more: bool) -> None:
        self.started = True
        if not more:
            self._end()
        headers = [*_HEADERS, *self._headers]
        await self._respond({"type": "http.response.start", "status": 200, "headers": headers})
        body = b"".join((*self._kept, body))
        self._kept.clear()
        await self._respond({"type": "http.response.body", "body": body, "more_body": more})

    async def _refuse(self, status: HTTPStatus, error: str, **details: str) -> None:
        self.started = True
        self._end()
        await self._respond_refusal(status, error, details)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def release(self) -> None:
        """Break reference cycles after the reader has disconnected. This class does nothing."""

    def abort(self) -> None:
        """Let the application return, so that the server ends the response. Subclasses drop the connection."""
        self._end()
