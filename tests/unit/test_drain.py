"""SIGTERM drains a process, and SIGINT (Ctrl-C) closes its connections. These tests run no server.

tests/conformance/test_shutdown.py and tests/integration/test_stopping.py run servers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from reliable_cable.servers.drain import Drain, end_process, server_grace
from tests.support.server import ROOT

#: A program that sends a signal to its own process. `run` inserts code into it: `{drain}` and `{close}` into methods of
#: the hub, `{stop}` into the server's signal handler, `{before}` before the drain is installed, and `{after}` after the
#: signal has been sent. `{begin}` is the function that returns the hub.
PROGRAM = """
import asyncio, logging, os, signal, time, types
from reliable_cable.servers import drain

logging.basicConfig(format="%(message)s")
drain.DRAIN_LIMIT, drain.CLOSE_LIMIT, drain.STOP_LIMIT = {limits}

def send_signal():
    os.kill(os.getpid(), signal.{number})

def close_connections():
    print("close the connections", flush=True)

class Server:
    should_exit = False

    def handle_exit(self, number, frame):
        self.should_exit = True

closed = asyncio.Event()

def fail():
    raise LookupError("a bug")

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

    for number in drain.SIGNALS:
        signal.signal(number, stop)
    {before}
    assert drain.Drain({begin}, close_connections, loop).install()
    send_signal()
    {after}
    await stopped.wait()

asyncio.run(main())
"""
HANG = "await asyncio.Event().wait()"
BLOCK = "time.sleep(60)"
LONG = (30.0, 30.0, 60.0)
STOP = "loop.call_soon_threadsafe(stopped.set)"


def run(*, limits: tuple[float, float, float] = LONG, number: str = "SIGTERM", **code: str) -> list[str]:
    """Run the process to its end, and return the lines that it printed and logged.

    Args:
        limits: the values of `DRAIN_LIMIT`, `CLOSE_LIMIT` and `STOP_LIMIT`.
        number: the name of the signal.
        code: the code to insert.
    """
    parts = {"drain": "pass", "close": "pass", "stop": STOP, "begin": "Hub", "before": "pass", "after": "pass"}
    program = PROGRAM.format(limits=limits, number=number, **(parts | code))
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


def test_the_end_of_a_process_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    end_process(0.5)
    assert codes == [0]
    assert "The process did not stop in 0.5 seconds" in caplog.text


def test_a_process_whose_event_loop_is_blocked_is_ended() -> None:
    (line,) = run(after=BLOCK, limits=(0.1, 0.1, 0.3))
    assert line.startswith("The process did not stop in 0.3 seconds and is ended now.")


def test_a_process_that_cannot_write_its_log_is_ended() -> None:
    assert (
        run(after=f"logging._lock.acquire(); logging.root.handlers[0].acquire(); {BLOCK}", limits=(0.1, 0.1, 0.3)) == []
    )


def test_a_server_without_a_hub_stops_at_once() -> None:
    assert run(begin="lambda: None") == ["stop the server"]


def test_an_error_before_the_drain_does_not_keep_the_server_from_stopping() -> None:
    lines = run(begin="fail")
    assert lines[0] == "New connections cannot be refused. The server stops nevertheless."
    assert lines[-2:] == ["LookupError: a bug", "stop the server"]


class TestCtrlC:
    """The server's own handler receives SIGINT. In addition, the connections are closed."""

    #: The server stops only after SIGTERM.
    STOP_LATER = f"if number == signal.SIGTERM: {STOP}"

    def test_the_connections_are_closed(self) -> None:
        assert run(number="SIGINT") == ["stop the server", "close the connections"]

    def test_the_server_receives_each_signal(self) -> None:
        assert run(number="SIGINT", after="send_signal()").count("stop the server") == 2

    def test_the_time_is_not_limited(self) -> None:
        """The process may be a program that continues after its server has stopped."""
        before = "drain._thread = types.SimpleNamespace(start_new_thread=lambda *_: print('a timer', flush=True))"
        assert "a timer" not in run(number="SIGINT", before=before)
        assert "a timer" in run(number="SIGTERM", before=before)

    def test_sigterm_still_drains(self) -> None:
        """The parent process of `uvicorn --reload` sends SIGTERM after Ctrl-C."""
        lines = run(number="SIGINT", stop=self.STOP_LATER, after="os.kill(os.getpid(), signal.SIGTERM)")
        assert lines[:2] == ["stop the server", "close the connections"]
        assert lines[2:] == ["drain the hub", "close the hub", "stop the server"]

    def test_a_process_that_ignores_it_is_drained_by_sigterm(self) -> None:
        before = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
        after = "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
        assert run(before=before, after=after) == ["drain the hub", "close the hub", "stop the server"]


class TestALateInstall:
    """uvicorn has already received SIGTERM when a request, which arrived before the signal, installs the drain."""

    LATE = "signal.signal(signal.SIGTERM, Server().handle_exit); send_signal()"

    def test_the_drain_begins_at_once(self) -> None:
        begin = "lambda: print('refuse new connections', flush=True) or Hub()"
        after = "print('serve the request', flush=True); await closed.wait(); return"
        assert run(before=self.LATE, begin=begin, after=after, close="closed.set()") == [
            "refuse new connections",
            "serve the request",
            "drain the hub",
            "close the hub",
        ]

    def test_the_time_is_limited(self) -> None:
        last = run(before=self.LATE, limits=(0.1, 0.1, 0.3))[-1]
        assert last.startswith("The process did not stop in")


class TestInstall:
    """`install` does nothing if there is no signal handler of a server that it can replace."""

    async def test_in_another_thread(self) -> None:
        drain = Drain(no_hub, no_hub, asyncio.get_running_loop())
        installed: list[bool] = []
        thread = threading.Thread(target=lambda: installed.append(drain.install()))
        thread.start()
        thread.join(30)
        assert installed == [False]

    @pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
    async def test_without_a_handler_in_python(self, handler: Any) -> None:
        former = signal.signal(signal.SIGTERM, handler)
        try:
            assert not Drain(no_hub, no_hub, asyncio.get_running_loop()).install()
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
