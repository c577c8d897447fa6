"""The endpoint `GET /events`, which sends server-sent events (see docs/events.md).

The consumer of the project serves a reader of events in the same way as a WebSocket client. So the same checks and
limits apply. The consumer receives the commands into which the request is translated, and no later commands.
"""

import asyncio
from collections.abc import Iterable, Mapping
from http import HTTPMethod, HTTPStatus
from typing import Any, Final

from reliable_cable.protocol.constants import WRONG_ORIGIN, Subprotocol
from reliable_cable.servers import event_transport_for
from reliable_cable.servers.base import FRAMES_EXTENSION
from reliable_cable.servers.events import EventTransport

from .asgi_io import Application, ClientDisconnected, Receive, Scope, Send, encode_headers, read_body, send_response
from .core import Refusal, Response
from .cors import check_site, cors_headers, preflight, refuse_origin, without_origin
from .event_request import MAX_BODY_SIZE, EventRequest, read_request

_METHODS: Final = (HTTPMethod.GET, HTTPMethod.POST)
_SCHEMES: Final = {"http": "ws", "https": "wss"}
#: The close code that the consumer receives, which stands for a lost connection. The server cannot know whether a
#: reader left the web page or lost its connection.
_CONNECTION_LOST: Final = 1006


async def serve_events(application: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a reader of server-sent events until the connection ends.

    Args:
        application: the consumer with its middlewares.
        scope: the scope of the HTTP request.
        receive: the ASGI `receive` of the HTTP request.
        send: the ASGI `send` of the HTTP request.
    """
    headers = cors_headers(scope)

    async def respond(response: Response) -> None:
        response.headers.update({"Cache-Control": "no-store", **headers, **response.headers})
        await send_response(response, send, with_body=True)

    async def refuse(status: HTTPStatus, error: str, details: Mapping[str, Any]) -> None:
        wrong_origin = details.get("reason") == WRONG_ORIGIN
        refusal = refuse_origin(scope, headers) if wrong_origin else Refusal(status, error, **details)
        await respond(refusal.response())

    try:
        request = await _read(scope, receive, headers)
    except ClientDisconnected:
        return
    except Refusal as refusal:
        request = refusal.response()
    if isinstance(request, Response):
        await respond(request)
        return
    transport = event_transport_for(
        send,
        refuse=refuse,
        form=request.form,
        identifiers=request.identifiers,
        resumed=request.resumed,
        headers=encode_headers(headers),
    )
    inner = {**scope, "headers": without_origin(scope, headers)}
    try:
        await application(
            _as_websocket(inner, transport), _Commands(request, transport, receive).receive, transport.send
        )
        if transport.started and not transport.ended.done():
            await transport.send({"type": "websocket.close"})
    finally:
        transport.release()


async def _read(scope: Scope, receive: Receive, headers: Mapping[str, str]) -> EventRequest | Response:
    """Parse an HTTP request. If the request does not ask for events, return the response to it.

    Args:
        scope: the scope of the HTTP request.
        receive: the ASGI `receive` of the HTTP request.
        headers: the result of `cors_headers`.

    Raises:
        Refusal: the request is not valid.
        ClientDisconnected: the client disconnected while its body was being read.
    """
    method = scope["method"].upper()
    if method == HTTPMethod.OPTIONS:
        return preflight(scope, headers)
    if method not in _METHODS:
        return Response(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join((*_METHODS, HTTPMethod.OPTIONS))})
    check_site(scope, headers)
    body = await read_body(receive, MAX_BODY_SIZE + 1)
    last_event_id = b""
    for name, value in scope["headers"]:
        if name == b"last-event-id":
            last_event_id = value
    return read_request(method, scope.get("query_string", b""), last_event_id.decode(errors="replace"), body)


def _as_websocket(scope: Scope, transport: EventTransport) -> Scope:
    """Return the scope for the call of the consumer: a WebSocket scope with the data of the HTTP request."""
    return {
        **scope,
        "type": "websocket",
        "scheme": _SCHEMES.get(scope.get("scheme", "http"), "ws"),
        "subprotocols": [str(Subprotocol.EXTENDED_JSON)],
        "extensions": {FRAMES_EXTENSION: transport},
    }


class _Commands:
    """Gives the consumer the commands of a request for events, as if a WebSocket client had sent them.

    Args:
        request: the parsed request, which contains the commands.
        transport: sends events to the reader.
        receive: the ASGI `receive` of the HTTP request, after its body was read.
    """

    def __init__(self, request: EventRequest, transport: EventTransport, receive: Receive) -> None:
        frames: Iterable[dict[str, Any]] = ({"type": "websocket.receive", "text": each} for each in request.frames)
        self._messages = iter([{"type": "websocket.connect"}, *frames])
        self._transport = transport
        self._receive = receive

    async def receive(self) -> dict[str, Any]:
        """Return the next ASGI message. After the last command, wait until the connection has ended."""
        for message in self._messages:
            return message
        task = asyncio.ensure_future(self._until_disconnected())
        try:
            await asyncio.wait([task, self._transport.ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
        return {"type": "websocket.disconnect", "code": _CONNECTION_LOST}

    async def _until_disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
