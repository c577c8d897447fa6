"""`presence_for` reads the members from the API of anycable-go, if the setting `API_URL` names that API."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.test import override_settings

from reliable_cable import NotSupported, StoreError, presence_for
from reliable_cable.signing import derived_key
from reliable_cable.stores.presence.base import PresenceInfo
from tests.support.server import free_port
from tests.support.thread_server import serving


class API(ThreadingHTTPServer):
    """A server that takes the place of anycable-go. A test chooses its response."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.response: tuple[int, str] = (200, '{"type": "info", "total": 0}')
        #: The path and the key of each request.
        self.requests: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    server: API

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Authorization"]))
        status, body = self.server.response
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        """Print nothing."""


@pytest.fixture
def api() -> Iterator[API]:
    with serving(API()) as server:
        url = f"http://user:password@127.0.0.1:{server.server_port}/api/"
        with override_settings(RELIABLE_CABLE={"BROADCAST_ADAPTER": "http", "SECRET": "s", "API_URL": url}):
            yield server


async def test_members_are_read_with_the_derived_key(api: API) -> None:
    records = '[{"id": "1", "info": {"name": "Ann"}}, {"id": "2"}]'
    api.response = (200, f'{{"type": "info", "total": 2, "records": {records}}}')
    expected = PresenceInfo(2, {"1": {"name": "Ann"}, "2": None})
    assert await presence_for("a room/1").ainfo() == expected
    assert await presence_for("a room/1").atotal() == 2
    assert api.requests == [("/api/presence/a%20room%2F1/users", f"Bearer {derived_key('api-cable')}")] * 2


def test_a_given_key_is_sent_instead(api: API) -> None:
    url = f"http://127.0.0.1:{api.server_port}"
    with override_settings(RELIABLE_CABLE={"BROADCAST_ADAPTER": "http", "API_URL": url, "API_KEY": "k"}):
        assert presence_for("chat").total() == 0
    assert api.requests == [("/presence/chat/users", "Bearer k")]


def test_a_server_without_the_api_is_reported_with_a_remedy(api: API) -> None:
    api.response = (404, "404 page not found")
    with pytest.raises(NotSupported, match=r"since version 1\.6"):
        presence_for("chat").info()


def test_a_server_without_a_broker_is_reported_with_a_remedy(api: API) -> None:
    api.response = (501, "Not Implemented")
    with pytest.raises(NotSupported, match="Start anycable-go with --broker"):
        presence_for("chat").info()


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ((401, ""), r"status 401\. Set RELIABLE_CABLE\['SECRET'\]"),
        ((302, ""), r"status 302\.$"),
        ((500, ""), r"status 500\.$"),
        ((200, "<html>"), "could not be read: Expecting value"),
        ((200, "[]"), r"The members of the stream 'chat' could not be read: \[\]"),
        ((200, '{"records": []}'), "The members of the stream 'chat' could not be read"),
        ((200, '{"total": 1, "records": [1]}'), "The members of the stream 'chat' could not be read"),
    ],
)
def test_a_failure_names_the_server_and_no_password(api: API, response: tuple[int, str], message: str) -> None:
    api.response = response
    with pytest.raises(StoreError, match=message) as caught:
        presence_for("chat").info()
    assert "password" not in str(caught.value)
    assert len(api.requests) == 1, "redirects are not followed, because the request has a key"


def test_a_server_that_cannot_be_reached_is_an_error() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    with (
        override_settings(RELIABLE_CABLE={"BROADCAST_ADAPTER": "http", "SECRET": "s", "API_URL": url}),
        pytest.raises(StoreError, match=rf"The API at 127\.0\.0\.1:{port} could not be read: .*refused"),
    ):
        presence_for("chat").info()
