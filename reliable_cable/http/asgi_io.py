"""Reads the bodies of requests from an ASGI server, and sends responses to it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .core import Response

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[Any]]


class ClientDisconnected(Exception):
    """Raised if the client disconnects before the whole body of its request has been received."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """Return the body of a request, or its first `limit` bytes if it is longer.

    Raises:
        ClientDisconnected: the client disconnected before all these bytes were received.
    """
    parts: list[bytes] = []
    size = 0
    more = True
    while more and size < limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        more = message.get("more_body", False)
    return b"".join(parts)[:limit]


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI messages contain them: a list of names and values, which are bytes."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


async def send_response(response: Response, send: Send, *, with_body: bool) -> None:
    """Send a response. If `with_body` is False, as for a HEAD request, send only the headers of the response."""
    headers = encode_headers(response.headers)
    headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": int(response.status), "headers": headers})
    await send({"type": "http.response.body", "body": response.body if with_body else b""})
