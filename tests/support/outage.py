"""Simulates outages of the PostgreSQL server of the tests: the server is stopped, or it hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.postgres import OPTIONS, find_postgres, unprivileged_user


def stop(host: str, *, mode: str = "immediate") -> None:
    """Stop the server of `running_postgres`. Its connections are closed, and new ones are refused.

    Args:
        host: the HOST of the server, a directory that contains its socket and its data.
        mode: the shutdown mode. With "immediate", the latest commits may be lost. With "fast", none is lost.
    """
    _pg_ctl(host, "-m", mode, "stop")


def start(host: str) -> None:
    """Start the server again, and wait until it answers."""
    options = f"{OPTIONS} -c listen_addresses='' -c unix_socket_directories='{host}'"
    _pg_ctl(host, "-l", f"{host}/server", "-o", options, "start")


@contextlib.contextmanager
def hanging(host: str) -> Iterator[None]:
    """Make the server hang (SIGSTOP): it accepts connections, but answers nothing."""
    postmaster = int((Path(host) / "data" / "postmaster.pid").read_text().split()[0])
    stopped: list[int] = []
    try:
        # The postmaster is stopped first, so that it starts no new processes.
        _send(signal.SIGSTOP, postmaster)
        stopped.append(postmaster)
        for process in child_pids(postmaster):
            _send(signal.SIGSTOP, process)
            stopped.append(process)
        yield
    finally:
        for process in stopped:
            _send(signal.SIGCONT, process)


def child_pids(process: int) -> list[int]:
    """Return the ids of the child processes of a process."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], check=False, capture_output=True, text=True)
    return [int(line) for line in listed.stdout.split()]


def _send(number: signal.Signals, process: int) -> None:
    """Send a signal to a process. The process may have ended, because it ends with the connection that it serves."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def _pg_ctl(host: str, *arguments: str) -> None:
    binaries = find_postgres()
    assert binaries is not None
    command = [str(binaries / "pg_ctl"), "-D", f"{host}/data", "-w", *arguments]
    with (Path(host) / "log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, user=unprivileged_user(), cwd=host, check=True)
