"""Tests of `manage.py cable_serve`: the options that it passes to each server. No server is started."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import autoreload

from demo_project.asgi import application
from reliable_cable.servers import paced_daphne, uvicorn_server
from reliable_cable.servers.deflate import CompressingWebSocketProtocol
from reliable_cable.servers.paced_uvicorn import PacedHTTPProtocol
from reliable_cable.servers.uvicorn import CableWebSocketProtocol

LARGEST = 4 * 2000


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    """Restore the thresholds of the garbage collector."""
    former = gc.get_threshold()
    yield
    gc.set_threshold(*former)


@pytest.fixture(autouse=True)
def started(settings: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options that were passed to the server, which is not started."""
    given: dict[str, Any] = {}

    class Factory:
        def setProtocolOptions(self, **options: Any) -> None:  # noqa: N802 - autobahn's name
            given.update(options)

    class Server:
        ws_factory = Factory()
        abort_start = False

        def __init__(self, served: Any, **options: Any) -> None:
            given.update(options, application=served)

        def run(self) -> None:
            if "port=1:" in given["endpoints"][0]:
                self.abort_start = True
            else:
                given.pop("ready_callable")()

    settings.ASGI_APPLICATION = "demo_project.asgi.application"
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "MAX_MESSAGE_SIZE": 2000}
    monkeypatch.setattr(uvicorn_server, "run", lambda served, **options: given.update(options, application=served))
    monkeypatch.setattr(paced_daphne, "PacedServer", Server)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: given.update(open_files=limits))
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    return given


def test_uvicorn_is_the_default(started: dict[str, Any]) -> None:
    call_command("cable_serve", "[::1]:8001")
    given = SimpleNamespace(**started)
    assert given.application is application
    assert (given.host, given.port) == ("::1", 8001)
    assert (given.http, given.ws) == (PacedHTTPProtocol, CableWebSocketProtocol)
    assert (given.ws_max_size, given.backlog, given.lifespan) == (LARGEST, 4096, "off")
    assert given.forwarded_allow_ips is None


def test_only_uvicorn_can_compress(started: dict[str, Any]) -> None:
    call_command("cable_serve", "--compress")
    assert started["ws"] is CompressingWebSocketProtocol
    with pytest.raises(CommandError, match="--compress works only with uvicorn"):
        call_command("cable_serve", "--compress", "--server", "daphne")


@pytest.mark.parametrize("server", ["uvicorn", "daphne"])
def test_full_collections_become_rarer_unless_the_project_has_set_a_threshold(server: str) -> None:
    for chosen, then in ((10, 100), (12, 12)):
        gc.set_threshold(700, 10, chosen)
        call_command("cable_serve", "--server", server)
        assert gc.get_threshold() == (700, 10, then)


def test_daphne_has_the_same_limits(started: dict[str, Any]) -> None:
    call_command("cable_serve", "127.0.0.1:8001", "--server", "daphne")
    given = SimpleNamespace(**started)
    assert given.application is application
    assert given.endpoints == ["tcp:port=8001:interface=127.0.0.1:backlog=4096"]
    assert (given.maxFramePayloadSize, given.maxMessagePayloadSize) == (LARGEST, LARGEST)
    assert given.websocket_timeout == -1, "WebSockets must not be closed because of their age"
    assert given.proxy_forwarded_address_header is None, "any client could forge the headers"


def test_daphne_accepts_an_ipv6_address(started: dict[str, Any]) -> None:
    call_command("cable_serve", "[::1]:8001", "--server", "daphne")
    assert started["endpoints"] == [r"tcp:port=8001:interface=\:\:1:backlog=4096"]


@pytest.mark.parametrize("server", ["uvicorn", "daphne"])
def test_the_limit_of_open_files_is_raised_to_the_maximum(started: dict[str, Any], server: str) -> None:
    call_command("cable_serve", "--server", server)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert started["open_files"] == (most, most)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_both_servers_can_trust_a_proxy(started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    options = ["--forwarded-allow-ips", "*"] if by == "option" else []
    if by == "environment":
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    call_command("cable_serve", *options)
    assert started["forwarded_allow_ips"] == "*"
    call_command("cable_serve", "--server", "daphne", *options)
    given = SimpleNamespace(**started)
    assert given.proxy_forwarded_address_header == "X-Forwarded-For"
    assert given.proxy_forwarded_proto_header == "X-Forwarded-Proto"


def test_daphne_cannot_trust_only_some_proxies() -> None:
    with pytest.raises(CommandError, match="of all clients or of none"):
        call_command("cable_serve", "--server", "daphne", "--forwarded-allow-ips", "10.0.0.1")


@pytest.mark.parametrize("address", ["8000", "localhost", "localhost:http", ":"])
def test_an_invalid_address_is_an_error(address: str) -> None:
    with pytest.raises(CommandError, match="is not an address; give host:port"):
        call_command("cable_serve", address)


def test_a_missing_application_is_an_error(settings: Any) -> None:
    settings.ASGI_APPLICATION = None
    with pytest.raises(CommandError, match="Set ASGI_APPLICATION"):
        call_command("cable_serve")


def test_daphne_that_cannot_listen_is_an_error() -> None:
    with pytest.raises(CommandError, match="cannot listen on"):
        call_command("cable_serve", "127.0.0.1:1", "--server", "daphne")


def test_a_crash_of_djangos_reloader_starts_the_process_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*args: Any, **options: Any) -> None:
        raise KeyError("site1.urls")  # another thread has removed the module from `sys.modules`

    monkeypatch.setattr(autoreload, "run_with_reloader", crash)
    with pytest.raises(SystemExit) as exit_:
        call_command("cable_serve", reload=True)
    assert exit_.value.code == 3
