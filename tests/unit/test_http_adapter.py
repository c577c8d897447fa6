"""The HTTP adapter keeps connections open, and repeats only requests that were certainly not handled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

import pytest
from django.test import override_settings

from reliable_cable import BroadcastError, BroadcastUncertain, abroadcast, broadcast
from reliable_cable.signing import derived_key
from reliable_cable.stores.adapters import http
from reliable_cable.stores.engine import get_engine
from tests.support.thread_server import serving

#: The status after which the server closes the connection, without having announced it.
CLOSING = 202
#: In place of a status: the server closes the connection without a response.
NO_RESPONSE = 0
#: In place of a status: the server hangs until the test ends, and then closes the connection.
HANG = -1


class Endpoint(ThreadingHTTPServer):
    """A server that takes the place of anycable-go. A test chooses its responses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        #: The statuses of the next responses, `NO_RESPONSE` or `HANG`. All later requests get the status 201.
        self.script: list[int] = []
        #: The key and the body of each request.
        self.requests: list[tuple[str | None, bytes]] = []
        self.connections = 0
        #: Setting this ends the requests that hang.
        self.end = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.headers["Authorization"], body))
        status = self.server.script.pop(0) if self.server.script else 201
        if status == HANG:
            self.server.end.wait(30)
        if status in (HANG, NO_RESPONSE):
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.close_connection = status == CLOSING

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
        """Print nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(Endpoint()) as server:
        settings = {
            "BROADCAST_ADAPTER": "http",
            "HTTP_BROADCAST_URL": f"http://user:password@127.0.0.1:{server.server_port}/_broadcast",
            "SECRET": "s",
        }
        with override_settings(RELIABLE_CABLE=settings), mock.patch.object(http, "RETRY_DELAYS", (0.0, 0.0)):
            yield server
            get_engine().streams.close()
        server.end.set()


def test_requests_share_a_connection_and_have_the_derived_key(endpoint: Endpoint) -> None:
    for number in (1, 2, 3):
        broadcast("chat", number)
    assert endpoint.connections == 1
    assert endpoint.requests[0] == (f"Bearer {derived_key('broadcast-cable')}", b'{"stream":"chat","data":"1"}')


def test_a_given_key_is_sent_instead(endpoint: Endpoint) -> None:
    url = f"http://127.0.0.1:{endpoint.server_port}/"
    with override_settings(
        RELIABLE_CABLE={"BROADCAST_ADAPTER": "http", "HTTP_BROADCAST_URL": url, "BROADCAST_KEY": "k"}
    ):
        broadcast("chat", 1)
        get_engine().streams.close()
    assert endpoint.requests[0][0] == "Bearer k"


async def test_async_code_posts_in_a_thread(endpoint: Endpoint) -> None:
    await abroadcast("chat", 1)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(endpoint: Endpoint, status: int) -> None:
    endpoint.script = [status, status, 201]
    broadcast("chat", 1)
    assert len(endpoint.requests) == 3
    endpoint.script = [status] * 3
    with pytest.raises(BroadcastError, match=f"Nothing was broadcast: .*status {status}") as caught:
        broadcast("chat", 1)
    assert not isinstance(caught.value, BroadcastUncertain)


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_response_after_which_the_message_may_have_been_sent_is_uncertain(endpoint: Endpoint, status: int) -> None:
    endpoint.script = [status]
    with pytest.raises(BroadcastUncertain):
        broadcast("chat", 1)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(("status", "remedy"), [(401, "'SECRET'"), (404, "'HTTP_BROADCAST_URL'"), (301, "status 301")])
def test_a_refusal_names_a_remedy_and_no_password(endpoint: Endpoint, status: int, remedy: str) -> None:
    endpoint.script = [status]
    with pytest.raises(BroadcastError, match=remedy) as caught:
        broadcast("chat", 1)
    assert "password" not in str(caught.value)
    assert len(endpoint.requests) == 1


def test_a_request_without_a_response_is_not_repeated(endpoint: Endpoint) -> None:
    broadcast("chat", "opens a connection")
    endpoint.script = [NO_RESPONSE]
    with pytest.raises(BroadcastUncertain, match="clients may receive it twice"):
        broadcast("chat", 1)
    assert len(endpoint.requests) == 2
    broadcast("chat", 2)
    assert endpoint.connections == 2


def test_a_server_that_hangs_is_uncertain(endpoint: Endpoint) -> None:
    endpoint.script = [HANG]
    with mock.patch.object(http, "RESPONSE_TIMEOUT", 0.1), pytest.raises(BroadcastUncertain, match="did not respond"):
        broadcast("chat", 1)


def test_an_idle_connection_that_the_server_has_closed_is_replaced(endpoint: Endpoint) -> None:
    endpoint.script = [CLOSING]
    broadcast("chat", 1)
    (idle,) = get_engine().streams.adapter._idle  # type: ignore[attr-defined]
    idle.sock.recv(1)  # wait until the server has closed the connection
    broadcast("chat", 2)
    assert endpoint.connections == 2


def test_a_lost_server_is_an_error_without_uncertainty(endpoint: Endpoint) -> None:
    endpoint.shutdown()
    endpoint.server_close()
    with pytest.raises(BroadcastError, match="cannot be reached") as caught:
        broadcast("chat", 1)
    assert not isinstance(caught.value, BroadcastUncertain)
