"""Servers log a limited number of exceptions of WebSockets, and a missing route as one line."""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path, re_path

from reliable_cable import CableConsumer
from reliable_cable.client_log import MAX_LINES, MAX_TRACEBACKS
from reliable_cable.server_logs import limit_exceptions

consumer = CableConsumer.as_asgi()


async def logged_exception(application: Any, path: str = "/cabel", type_: str = "websocket") -> logging.LogRecord:
    """Call an application that fails, and return the record with which a server would log the exception."""
    scope = {"type": type_, "path": path, "headers": [], "query_string": b""}
    try:
        await application(scope, None, None)
    except ValueError:
        return logging.LogRecord("daphne.server", logging.ERROR, __file__, 1, "It failed.", (), sys.exc_info())
    raise AssertionError("the application raised nothing")


async def test_a_wrong_path_names_all_routes(caplog: pytest.LogCaptureFixture) -> None:
    inner = URLRouter([path("one", consumer), re_path(r"^two/(?P<id>\d+)$", consumer)])
    router = URLRouter([path("cable", consumer), path("in/", inner)])
    assert not limit_exceptions(await logged_exception(ProtocolTypeRouter({"websocket": router})))
    (line,) = caplog.messages
    assert line.startswith(r"No WebSocket route has the path '/cabel'. The routes are: /cable, /in/one, /in/two/(?P")
    assert line.endswith("Correct the URL in {% cable_meta_tags %} or createCable(), or the URLRouter in asgi.py.")


HTTP = get_asgi_application()


@pytest.mark.parametrize("application", [ProtocolTypeRouter({"http": HTTP}), HTTP], ids=["router", "Django"])
async def test_an_application_without_websockets_is_told_what_asgi_py_lacks(
    application: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert not limit_exceptions(await logged_exception(application))
    (line,) = caplog.messages
    assert line.startswith("The ASGI application serves no WebSockets.")
    assert 'URLRouter([path("cable", CableConsumer.as_asgi())])' in line


async def test_exceptions_of_consumers_and_middlewares_are_logged_within_limits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("No route found for path 'x'.")

    router = URLRouter([path("cable", cast(Any, fail))])
    for _ in range(MAX_LINES + 5):
        assert not limit_exceptions(await logged_exception(router, "/cable"))
    text = "A WebSocket failed: ValueError(\"No route found for path 'x'.\")"
    assert caplog.messages == [text] * MAX_LINES
    assert len([record for record in caplog.records if record.exc_info]) == MAX_TRACEBACKS


class TestOtherExceptions:
    """Exceptions of HTTP requests and of the project's own consumers stay in the log of the server."""

    async def test_those_of_requests(self, caplog: pytest.LogCaptureFixture) -> None:
        router = ProtocolTypeRouter({"http": URLRouter([])})
        assert limit_exceptions(await logged_exception(router, type_="http"))
        assert caplog.messages == []

    async def test_those_of_consumers_of_the_project(self, caplog: pytest.LogCaptureFixture) -> None:
        class Failing(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels is untyped
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                raise ValueError("a mistake")

        router = URLRouter([path("other", cast(Any, Failing.as_asgi()))])
        assert limit_exceptions(await logged_exception(router, "/other"))
        assert caplog.messages == []

    def test_those_without_a_traceback(self) -> None:
        for exc_info in (None, (ValueError, ValueError("x"), None), (TypeError, TypeError("x"), None)):
            record = logging.LogRecord("uvicorn.error", logging.ERROR, __file__, 1, "It failed.", (), exc_info)
            assert limit_exceptions(record)
