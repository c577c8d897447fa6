"""SIGTERM drains a process. These tests have no server; tests/conformance/test_shutdown.py has servers."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from reliable_cable.servers.drain import Drain, server_grace
from tests.support.server import ROOT

#: A program that sends SIGTERM to its own process. `{drain}` and `{close}` stand for code of the hub, and `{stop}`
#: stands for code of the server's signal handler.
PROGRAM = """
import asyncio, logging, os, signal
from reliable_cable.servers import drain

logging.basicConfig(format="%(message)s")
drain.DRAIN_LIMIT, drain.CLOSE_LIMIT, drain.STOP_LIMIT = {limits}

def send_signal():
    os.kill(os.getpid(), signal.SIGTERM)

class Hub:
    async def drain(self, duration):
        print("drain the hub", flush=True)
        {drain}

    async def aclose(self):
        print("close the hub", flush=True)
        {close}

async def main():
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop(number, frame):
        print("stop the server", flush=True)
        {stop}

    signal.signal(signal.SIGTERM, stop)
    assert drain.Drain(Hub, loop).install()
    send_signal()
    await stopped.wait()

asyncio.run(main())
"""
HANG = "await asyncio.Event().wait()"
LONG = (30.0, 30.0, 60.0)
STOP = "loop.call_soon_threadsafe(stopped.set)"


def run(
    *, drain: str = "pass", close: str = "pass", stop: str = STOP, limits: tuple[float, float, float] = LONG
) -> list[str]:
    """Run the process to its end, and return the lines that it printed and logged."""
    program = PROGRAM.format(drain=drain, close=close, stop=stop, limits=limits)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        timeout=60,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.stdout.splitlines()


def test_the_connections_and_the_stores_are_closed_before_the_server_stops() -> None:
    assert run() == ["drain the hub", "close the hub", "stop the server"]


def test_a_second_signal_stops_the_server_at_once() -> None:
    assert run(drain=f"send_signal(); {HANG}")[:2] == ["drain the hub", "stop the server"]


def test_connections_that_do_not_close_do_not_keep_the_server_from_stopping() -> None:
    assert run(drain=HANG, limits=(0.05, 30, 60)) == [
        "drain the hub",
        "Some connections could not be drained in 0.05 seconds. The server closes them.",
        "close the hub",
        "stop the server",
    ]


def test_stores_that_do_not_close_do_not_keep_the_server_from_stopping() -> None:
    assert run(close=HANG, limits=(30, 0.05, 60)) == [
        "drain the hub",
        "close the hub",
        "The stores could not be closed in 0.05 seconds. The server stops nevertheless.",
        "stop the server",
    ]


def test_an_error_does_not_keep_the_server_from_stopping() -> None:
    lines = run(drain="raise LookupError('a bug')")
    assert lines[:2] == ["drain the hub", "Draining failed. The server stops nevertheless."]
    assert lines[-2:] == ["LookupError: a bug", "stop the server"]


def test_a_process_that_does_not_stop_is_ended() -> None:
    last = run(stop="pass", limits=(0.1, 0.1, 0.3))[-1]
    assert last == (
        "The process did not stop in 0.3 seconds and is ended now. These threads are still running: MainThread."
    )


class TestInstall:
    """`install` does nothing if there is no signal handler of a server that it can replace."""

    async def test_in_another_thread(self) -> None:
        drain = Drain(no_hub, asyncio.get_running_loop())
        installed: list[bool] = []
        thread = threading.Thread(target=lambda: installed.append(drain.install()))
        thread.start()
        thread.join(30)
        assert installed == [False]

    @pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
    async def test_without_a_handler_in_python(self, handler: Any) -> None:
        former = signal.signal(signal.SIGTERM, handler)
        try:
            assert not Drain(no_hub, asyncio.get_running_loop()).install()
            assert signal.getsignal(signal.SIGTERM) is handler
        finally:
            signal.signal(signal.SIGTERM, former)


def no_hub() -> Any:
    """Take the place of the hub, which is not used."""
    return None


class _Config:
    timeout_graceful_shutdown: int | None = 7


class _UvicornServer:
    config = _Config()

    def handle_exit(self, number: int, frame: object) -> None:
        """The handler of uvicorn."""


_UvicornServer.handle_exit.__module__ = "uvicorn.server"


@pytest.mark.parametrize(("number", "grace"), [(7, 7.0), (None, 0.0)])
def test_the_grace_of_uvicorn(monkeypatch: pytest.MonkeyPatch, number: int | None, grace: float) -> None:
    monkeypatch.setattr(_Config, "timeout_graceful_shutdown", number)
    monkeypatch.setattr(signal, "getsignal", lambda _: _UvicornServer().handle_exit)
    assert server_grace() == grace


def test_the_grace_of_daphne_and_of_other_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(number: int, frame: object) -> None:
        """A handler of a server."""

    monkeypatch.setattr(signal, "getsignal", lambda _: handler)
    assert server_grace() is None
    handler.__module__ = "twisted.internet.base"
    assert server_grace() == 0
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)
    assert server_grace() is None
