"""Reads a stream for one HTTP request, such as the events of a run.

The request is served in the same way as a WebSocket client that subscribes to a channel: by a connection of this
process. So the same rules and limits apply, and the connection ends at a logout and before the server stops.
"""

import asyncio
import inspect
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from django.core.handlers.asgi import ASGIHandler

from reliable_cable.concurrency.django_thread import context_of_shared_thread, release_own_thread
from reliable_cable.consumer import CableConsumer, get_hub
from reliable_cable.logs import logger
from reliable_cable.protocol import messages
from reliable_cable.protocol.constants import TRY_AGAIN, DisconnectReason, MessageType, Subprotocol
from reliable_cable.runs.cable import RunChannel
from reliable_cable.servers import response_transport_for
from reliable_cable.servers.base import FRAMES_EXTENSION, Transport
from reliable_cable.servers.drain import server_grace
from reliable_cable.servers.responses import ResponseTransport

from .limits import open_readers
from .requests import Visitor

#: The maximum number of queued events for a slow reader. Once the queue is full, later events come from the store.
MAX_EVENTS: Final = 16

#: The error messages that users read.
GONE: Final = "There is no such answer."
LOGGED_OUT: Final = "You may no longer read the answer. Please log in again."
RESTARTING: Final = "The server is restarting. Please load the answer again."
LOST: Final = "The connection to the answer was lost. Please load it again."
TOO_MANY: Final = "There were too many requests. Please try again in a minute."

_MESSAGES: Final[Mapping[str, str]] = {
    DisconnectReason.SERVER_RESTART: RESTARTING,
    DisconnectReason.REMOTE: LOGGED_OUT,
    DisconnectReason.UNAUTHORIZED: LOGGED_OUT,
    DisconnectReason.TOKEN_EXPIRED: LOGGED_OUT,
    DisconnectReason.RATE_LIMITED: TOO_MANY,
    TRY_AGAIN: RESTARTING,
}
#: The close code for a lost connection. The server cannot know why the client closed its request.
_CONNECTION_LOST: Final = 1006


#: An event of a stream, as it was broadcast. Readers without history get the whole frame, which has the position, too.
Event = dict[str, Any]

#: This event, in place of a frame, tells a reader without history to read the stream from the store, because the
#: subscription has begun or events were lost.
READ_STORE: Final[Event] = {}


class Interrupted(Exception):
    """Raised if a stream cannot be read any more, although it has not ended.

    Args:
        message: the reason, which the user reads.
    """


class RunConsumer(CableConsumer):
    """The consumer that serves a request. The view has authenticated the user, and checked the origin of the page."""

    allowed_origins = "*"


class ReaderTransport(Transport):
    """The transport of a connection without a WebSocket. It subscribes to a channel, and queues the events.

    Args:
        channel: the name of the channel to which the client subscribes.
        key: the parameter `id` of the subscription.
        response: the transport of the response, through which a slow reader is noticed; None if it was not found.
        history: whether to read the history of the stream, or a snapshot in its place. If not, the events are whole
            frames. `READ_STORE` comes before the first event, and in the place of lost events.
    """

    has_sessions = False
    max_streams = 1

    def __init__(self, channel: str, key: str, response: ResponseTransport | None, *, history: bool) -> None:
        self._response = response
        grace = server_grace()
        self.drainable = grace is not None
        self.grace = grace or 0.0
        self._history = history
        identifier = messages.dumps({"channel": channel, "id": key})
        subscribe: dict[str, Any] = {"command": "subscribe", "identifier": identifier}
        if history:
            subscribe["history"] = {"since": 1}
        self._commands = iter(
            [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": messages.dumps(subscribe)}]
        )
        self._events: asyncio.Queue[Event | Interrupted] = asyncio.Queue(MAX_EVENTS)
        #: A future that is done when the reader has left, or when the consumer has closed the connection.
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def receive(self) -> dict[str, Any]:
        """Return the next ASGI message to the consumer. After the commands, wait until the reader leaves."""
        for message in self._commands:
            return message
        await asyncio.shield(self._left)
        return {"type": "websocket.disconnect", "code": _CONNECTION_LOST}

    async def send(self, message: Mapping[str, Any]) -> None:
        """Queue the event in an ASGI message of the consumer, or the end of the connection. Ignore other messages.

        Wait while the queue is full.
        """
        if message["type"] == "websocket.send":
            item = _read_frame(json.loads(message["text"]), self._history)
        elif message["type"] == "websocket.close":
            item = Interrupted(_MESSAGES.get(message.get("reason", ""), LOST))
        else:
            item = None
        if item is not None and not self._left.done():
            await self._events.put(item)
        if message["type"] == "websocket.close":
            self._leave()

    async def next(self) -> Event:
        """Return the next event.

        Raises:
            Interrupted: the connection has ended.
        """
        item = await self._events.get()
        if isinstance(item, Interrupted):
            raise item
        return item

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """Register two callbacks for the state of the response's buffer, see `Transport.attach`."""
        if self._response is not None:
            self._response.attach(pause, resume)

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._left.done() or (self._response is not None and self._response.lost)

    def unsent(self) -> int | None:
        """Return how many bytes of the response the client has not acknowledged; None if that is unknown."""
        return None if self._response is None else self._response.unsent()

    def abort(self) -> None:
        """End the connection of a reader that is too slow, and discard the queued events."""
        self.end(LOST)
        if self._response is not None:
            self._response.abort()

    def end(self, message: str = LOST) -> None:
        """Tell the consumer that the reader has left. Calls of `send` no longer wait.

        Args:
            message: the error message for a reader that is still connected.
        """
        self._leave()
        while not self._events.empty():
            self._events.get_nowait()
        self._events.put_nowait(Interrupted(message))

    def release(self) -> None:
        """Break reference cycles of the response and the connection."""
        if self._response is not None:
            self._response.release()

    def _leave(self) -> None:
        if not self._left.done():
            self._left.set_result(None)


def _read_frame(frame: Mapping[str, Any], history: bool) -> Event | Interrupted | None:
    """Return the event in a frame. Return None for a frame that does not matter to the reader."""
    event: Event | None = frame.get("message") if history else dict(frame)
    match frame.get("type"):
        case None:
            return event
        case MessageType.DISCONNECT:
            return Interrupted(_MESSAGES.get(frame.get("reason") or "", LOST))
        case MessageType.REJECT_SUBSCRIPTION:
            return Interrupted(GONE)
        case MessageType.CONFIRM_SUBSCRIPTION if not history:
            return READ_STORE
        case MessageType.REJECT_HISTORY:
            # If the history was requested, this means that there is no snapshot, because the run was deleted.
            return Interrupted(LOST) if history else READ_STORE
    return None


@asynccontextmanager
async def open_reader(
    channel: str,
    key: str,
    visitor: Visitor,
    *,
    history: bool,
) -> AsyncGenerator[ReaderTransport, None]:
    """Subscribe to a channel until the context ends. Call `next` of the transport to get the events.

    Args:
        channel: the name of the channel.
        key: the parameter `id` of the subscription.
        visitor: the user who reads.
        history: see `ReaderTransport`.

    Raises:
        Refusal: the user has too many open readers.
    """
    with open_readers().opened(visitor):
        async with _subscribed(channel, key, visitor.scope, history=history) as transport:
            yield transport


@asynccontextmanager
async def _subscribed(
    channel: str, key: str, scope: Mapping[str, Any], *, history: bool
) -> AsyncGenerator[ReaderTransport, None]:
    send = _find_send()
    transport = ReaderTransport(channel, key, None if send is None else response_transport_for(send), history=history)
    await release_own_thread()
    inner = {
        **scope,
        "type": "websocket",
        "path": scope.get("path", ""),
        "query_string": b"",
        "subprotocols": [str(Subprotocol.EXTENDED_JSON)],
        "extensions": {FRAMES_EXTENSION: transport},
    }
    inner.pop("method", None)
    task = get_hub().tasks.spawn(_consumer(inner, transport.receive, transport.send), context_of_shared_thread())
    task.add_done_callback(partial(_finished, transport))
    try:
        yield transport
    finally:
        # The connection ends in its own task, which may take longer than the request.
        transport.end()
        transport.release()


async def read_events(run: str, visitor: Visitor, silence: float) -> AsyncGenerator[Event | None, None]:
    """Yield the events of a run: first a snapshot, then later events. Yield None if no event arrives for a while.

    The iteration does not end by itself. Close the iterator after the event with which the run ends.

    Args:
        run: the id of the run.
        visitor: the user who reads.
        silence: how long, in seconds, to wait for an event before None is yielded.

    Raises:
        Interrupted: the events cannot be read any more.
        Refusal: the user has too many open readers.
    """
    async with open_reader(RunChannel.__name__, run, visitor, history=True) as transport:
        while True:
            try:
                async with asyncio.timeout(silence):
                    event = await transport.next()
            except TimeoutError:
                yield None
            else:
                yield event


def _find_send() -> Any:
    """Return the ASGI `send` of the response that Django is sending in this task; None if it is not found.

    Django does not pass it to views. But the method that sends the response has called this function, through the
    iterator of the body.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is ASGIHandler.send_response.__code__:
            return frame.f_locals["send"]
        frame = frame.f_back
    return None


_consumer: Final = RunConsumer.as_asgi()


def _finished(transport: ReaderTransport, task: asyncio.Task[None]) -> None:
    """Tell the reader that its connection has ended. Usually, the reader has already left."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("The connection of a reader of a stream has failed.", exc_info=error)
    if not transport.lost:
        transport.end()
