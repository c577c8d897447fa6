"""Logs some mistakes in a project, with remedies. Servers hide these mistakes, or log them without a remedy."""

import logging
import sys
from collections.abc import Iterator, Mapping
from traceback import walk_tb
from typing import Any, Final

from channels.consumer import AsyncConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.handlers.asgi import ASGIHandler

from .client_log import handshake_log
from .consumer import CableConsumer
from .logs import logger

#: The loggers of servers that log the exceptions of ASGI applications.
_EXCEPTION_LOGGERS: Final = ("daphne.server", "uvicorn.error")


def install() -> None:
    """Add `limit_exceptions` and `log_unawaited` to the logs of the servers. Repeated calls have no further effect."""
    for name in _EXCEPTION_LOGGERS:
        logging.getLogger(name).addFilter(limit_exceptions)
    # If daphne serves the project, it has already imported Twisted.
    twisted = sys.modules.get("twisted.logger")
    if twisted is not None:
        twisted.globalLogPublisher.addObserver(log_unawaited)


def log_unawaited(event: Mapping[str, Any]) -> None:
    """Log Python's warning about a coroutine that was never awaited.

    Twisted redirects Python's warnings to its own log. daphne discards that log, unless its verbosity is 2 or more.

    Args:
        event: an event in Twisted's log.
    """
    text = str(event.get("warning", "")).partition("\n")[0]
    if text.startswith("coroutine ") and text.endswith(" was never awaited"):
        logger.warning(
            "%s:%s: %s, so it did nothing. Write `await` before the call, or call the sync function in sync code.",
            event["filename"],
            event["lineno"],
            text,
        )


def limit_exceptions(record: logging.LogRecord) -> bool:
    """Limit how often exceptions of WebSockets are logged, because clients can cause them. This is a log filter.

    The exceptions are logged by `handshake_log` in place of the server's logger. If the WebSocket has no route, a line
    with the remedy replaces the traceback. Exceptions of other consumers of the project are logged by the server.

    Args:
        record: a log record of a server.

    Returns:
        False if the record is dropped, because `handshake_log` was used.
    """
    error = record.exc_info[1] if record.exc_info else None
    frames = [] if error is None else [frame for frame, _ in walk_tb(error.__traceback__)]
    scopes = [scope for frame in frames if isinstance(scope := frame.f_locals.get("scope"), Mapping)]
    if not scopes or scopes[-1].get("type") != "websocket":
        return True
    objects = [frame.f_locals.get("self") for frame in frames]
    if any(isinstance(each, AsyncConsumer) and not isinstance(each, CableConsumer) for each in objects):
        return True
    router = objects[-1]
    if isinstance(error, ValueError) and isinstance(router, URLRouter) and str(error).startswith("No route found"):
        handshake_log.error(
            "No WebSocket route has the path %r. The routes are: %s. Correct the URL in {%% cable_meta_tags %%} or "
            "createCable(), or the URLRouter in asgi.py.",
            scopes[-1]["path"],
            ", ".join(_paths(router)),
        )
    elif isinstance(error, ValueError) and isinstance(router, ProtocolTypeRouter | ASGIHandler):
        handshake_log.error(
            "The ASGI application serves no WebSockets. In asgi.py, use a ProtocolTypeRouter with the entry "
            '"websocket": AuthMiddlewareStack(URLRouter([path("cable", CableConsumer.as_asgi())])).'
        )
    else:
        handshake_log.error("A WebSocket failed: %r", error, exc_info=error)
    return False


def _paths(router: Any, prefix: str = "/") -> Iterator[str]:
    """Yield the paths of all routes of a `URLRouter`, including those of nested routers."""
    for route in router.routes:
        path = prefix + str(route.pattern).removeprefix("^")
        if isinstance(route.callback, URLRouter):
            yield from _paths(route.callback, path)
        else:
            yield path
