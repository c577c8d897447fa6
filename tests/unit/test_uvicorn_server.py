"""`StartingServer` calls a function when uvicorn starts, and waits for background work before uvicorn ends."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from reliable_cable.servers import uvicorn_server


async def application(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no request is made")


def serve(on_start: Callable[[], None]) -> None:
    uvicorn_server.run(application, on_start=on_start, host="127.0.0.1", port=0, lifespan="off", log_config=None)


def test_ctrl_c_ends_the_server_without_an_error() -> None:
    events: list[str] = []

    def on_start() -> None:
        events.append("started")
        signal.raise_signal(signal.SIGINT)

    serve(on_start)
    assert events == ["started"]


def test_background_work_ends_before_uvicorn_raises_sigterm_again(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(uvicorn_server, "finish_workers", lambda: events.append("background work"))
    former = signal.signal(signal.SIGTERM, lambda number, frame: events.append("SIGTERM"))
    try:
        serve(lambda: signal.raise_signal(signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, former)
    assert events == ["background work", "SIGTERM"]
