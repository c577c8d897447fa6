"""Support for features of daphne and uvicorn that ASGI lacks, such as shared frames, pacing and draining."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from .base import FRAMES_EXTENSION, Transport
from .events import EventTransport
from .responses import ResponseTransport, make_response_transport

T = TypeVar("T")

#: The maximum number of middlewares that are unwrapped to find the server's own `send`.
_MAX_WRAPPERS = 8


def transport_for(scope: Mapping[str, Any], send: Any) -> Transport:
    """Return the transport of a connection.

    A server may put the transport into the scope. If it has not, the transport is found through the server's `send`,
    which may be wrapped by middlewares. For an unknown server, this returns a `Transport`, which uses nothing but ASGI.

    Args:
        scope: the ASGI scope of the connection.
        send: the ASGI `send` of the connection.
    """
    from . import daphne, uvicorn_transport

    offered = (scope.get("extensions") or {}).get(FRAMES_EXTENSION)
    if isinstance(offered, Transport):
        return offered
    found = _find(send, lambda candidate: daphne.transport_for(candidate) or uvicorn_transport.transport_for(candidate))
    return found or Transport(send)


def event_transport_for(send: Any, **options: Any) -> EventTransport:
    """Return the transport for a reader of server-sent events. The server is found in the same way as for a WebSocket.

    Args:
        send: the ASGI `send` of the request.
        options: the other arguments of `EventTransport`.
    """
    from .server_events import make_event_transport

    found = _find(send, lambda candidate: make_event_transport(send, candidate, **options))
    return found or EventTransport(send, **options)


def response_transport_for(send: Any) -> ResponseTransport:
    """Return the transport of a streamed HTTP response. The server is found in the same way as for a WebSocket.

    Args:
        send: the ASGI `send` of the request.
    """
    return _find(send, lambda candidate: make_response_transport(send, candidate)) or ResponseTransport(send)


def _find(send: Any, make: Callable[[Any], T | None]) -> T | None:
    """Return the transport that `make` returns for a `send`, or for a callable that it wraps; None if there is none."""
    candidates = [send]
    for _ in range(_MAX_WRAPPERS):
        for candidate in candidates:
            found = make(candidate)
            if found is not None:
                return found
        candidates = [wrapped for candidate in candidates for wrapped in _wrapped(candidate)]
        if not candidates:
            break
    return None


def _wrapped(send: Any) -> list[Any]:
    """Return the callables that a `send` may wrap.

    These are the variables in its closure. For a method, they also include those attributes of its object that have a
    name ending with `send`.
    """
    candidates: list[Any] = []
    for cell in getattr(getattr(send, "__func__", send), "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # raised if the variable has no value
            candidates.append(cell.cell_contents)
    for name, value in getattr(getattr(send, "__self__", None), "__dict__", {}).items():
        if name.endswith("send"):
            candidates.append(value)
    return list(filter(callable, candidates))
