"""`CableHTTP`, an ASGI application that serves the HTTP endpoints without Django's middlewares, URLs and views."""

import re
from contextlib import AbstractContextManager
from functools import partial
from http import HTTPMethod
from typing import Any, Final

from django.core.handlers.asgi import get_script_prefix

from reliable_cable.auth import CableAuthMiddlewareStack
from reliable_cable.conf import get_settings
from reliable_cable.namespaces import find_namespace, use_namespace

from .asgi_io import Application, ClientDisconnected, Receive, Scope, Send, read_body, send_response
from .broadcast import BROADCAST, PUBLISH
from .core import Endpoint, Request, arun
from .events import serve_events
from .health import HEALTH
from .presence import USERS
from .rpc import SID_HEADER, make_endpoints

#: The placeholder for the name of a stream in a path.
STREAM: Final = "<stream>"
#: The pattern of the paths at which an endpoint can be served.
_PATH: Final = re.compile(r"/[^?#%<>\s]*")


class CableHTTP:
    """An ASGI application that serves the HTTP endpoints, and passes everything else to another application.

    Use it in `asgi.py`: `"http": CableHTTP(get_asgi_application())`. Requests to the endpoints bypass Django's
    middlewares, URLs and views. If an endpoint does not allow the method of a request, the status is 405. An endpoint
    whose path is None is not served.

    Args:
        application: the ASGI application for everything else, such as `get_asgi_application()`.
        broadcast: the path of `POST /_broadcast`.
        publish: the path of `POST /api/publish`.
        presence: the path of `GET /api/presence/<stream>/users`. It must contain `<stream>` once.
        health: the path of `GET /health`.
        events: the path of `GET /events`. This endpoint is served only if `consumer` is given.
        consumer: the subclass of `CableConsumer` that serves the readers of server-sent events.
            `CableAuthMiddlewareStack` authenticates these readers. To use other middlewares, pass the ASGI application
            that serves the WebSockets. If it is a `URLRouter`, it needs a route for the path `events`.
        rpc: the path below which anycable-go finds `connect`, `command` and `disconnect`. These endpoints are served
            only if the setting `RPC_CONSUMER` is set.

    Raises:
        TypeError: the application or the consumer cannot be called, or a path is neither a string nor None.
        ValueError: a path does not begin with a slash, contains a character that cannot be in it, or is used twice; or
            the path of `presence` does not contain `<stream>` once.
    """

    def __init__(
        self,
        application: Application,
        *,
        broadcast: str | None = "/_broadcast",
        publish: str | None = "/api/publish",
        presence: str | None = "/api/presence/<stream>/users",
        health: str | None = "/health",
        events: str | None = "/events",
        consumer: Application | type[Any] | None = None,
        rpc: str | None = "/_anycable",
    ) -> None:
        if not callable(application):
            raise TypeError(f"CableHTTP() needs an ASGI application, not {application!r}.")
        self._application = application
        self._endpoints: dict[str, Endpoint] = {}
        for name, path, endpoint in (
            ("broadcast", broadcast, BROADCAST),
            ("publish", publish, PUBLISH),
            ("health", health, HEALTH),
            *(("rpc", f"{rpc}/{method}", endpoint) for method, endpoint in _rpc_endpoints(rpc).items()),
        ):
            if path is None:
                continue
            _check_path(name, path, path)
            if path in self._endpoints:
                raise ValueError(f"CableHTTP({name}={path!r}): this path is used twice.")
            self._endpoints[path] = endpoint
        self._presence: tuple[str, str] | None = None
        if presence is not None:
            _check_path("presence", presence, presence.replace(STREAM, "") if isinstance(presence, str) else presence)
            if presence.count(STREAM) != 1:
                raise ValueError(f"CableHTTP(presence={presence!r}): the path must contain {STREAM!r} once.")
            before, _, after = presence.partition(STREAM)
            self._presence = (before, after)
        self._consumer = None if consumer is None else _make_consumer(consumer)
        self._events = None if consumer is None else events
        if self._events is not None:
            _check_path("events", events, events)
            if self._events in self._endpoints:
                raise ValueError(f"CableHTTP(events={events!r}): this path is used twice.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request to an endpoint. Pass every other request, and WebSockets, to the other application."""
        if scope["type"] == "http" and self._consumer is not None and _path_in_application(scope) == self._events:
            await serve_events(self._consumer, scope, receive, send)
            return
        found = self._find(scope) if scope["type"] == "http" else None
        if found is None:
            await self._application(scope, receive, send)
            return
        endpoint, stream = found
        request = _read_head(scope, stream)
        try:
            response = await arun(endpoint.respond(request), partial(read_body, receive))
        except ClientDisconnected:
            return
        await send_response(response, send, with_body=request.method != HTTPMethod.HEAD)

    def _find(self, scope: Scope) -> tuple[Endpoint, str] | None:
        """Return the endpoint for the path of a request, and the stream name in the path; None if no endpoint matches.

        The stream name is `""` if the path has none.
        """
        path = _path_in_application(scope)
        endpoint = self._endpoints.get(path)
        if endpoint is not None:
            return endpoint, ""
        if self._presence is not None:
            before, after = self._presence
            if path.startswith(before) and path.endswith(after) and len(path) > len(before) + len(after):
                return USERS, path[len(before) : len(path) - len(after)]
        return None


def _rpc_endpoints(path: Any) -> dict[str, Endpoint]:
    """Return the endpoints for anycable-go, keyed by the last part of their paths; empty if they are not served."""
    if path is None:
        return {}
    _check_path("rpc", path, path)
    return make_endpoints() if get_settings().rpc_consumer is not None else {}


def _make_consumer(consumer: Any) -> Application:
    """Return the ASGI application that serves the readers of server-sent events.

    Raises:
        TypeError: the consumer is neither a subclass of `CableConsumer` nor an ASGI application.
    """
    if isinstance(consumer, type):
        if not hasattr(consumer, "as_asgi"):
            raise TypeError(f"CableHTTP(consumer={consumer!r}): the class must be a subclass of CableConsumer.")
        consumer = CableAuthMiddlewareStack(consumer.as_asgi())
    if not callable(consumer):
        raise TypeError(f"CableHTTP() needs a subclass of CableConsumer or an ASGI application, not {consumer!r}.")
    application: Application = consumer
    return application


def _check_path(name: str, path: Any, text: Any) -> None:
    if not isinstance(path, str):
        raise TypeError(f"CableHTTP({name}={path!r}): the path must be a string, or None.")
    if not _PATH.fullmatch(text):
        raise ValueError(
            f"CableHTTP({name}={path!r}): the path must begin with a slash, and contain none of ?#%<> and white space."
        )


def _path_in_application(scope: Scope) -> str:
    """Return the path of a request without the prefix under which the application is mounted, as Django does."""
    path: str = scope["path"]
    return path.removeprefix(get_script_prefix(scope))


def _read_head(scope: Scope, stream: str) -> Request:
    authorization: list[bytes] = []
    content_length = sid = b""
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization.append(value)
        elif name == b"content-length":
            content_length = value
        elif name == SID_HEADER:
            sid = value
    return Request(
        method=scope["method"].upper(),
        path=scope["path"],
        # Repeated headers are joined by commas, as in Django. So a request with two keys is refused, because the result
        # is not a valid key.
        authorization=b",".join(authorization).decode("latin-1"),
        content_length=content_length.decode("latin-1"),
        stream=stream,
        sid=sid.decode("latin-1"),
        namespace=partial(_enter_namespace, scope),
    )


def _enter_namespace(scope: Scope) -> AbstractContextManager[object]:
    return use_namespace(find_namespace(scope))
