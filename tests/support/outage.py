"""Outages of the tests' PostgreSQL: it is stopped and started, or it hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.postgres import OPTIONS, find_postgres, unprivileged_user


def stop(host: str) -> None:
    """Stop the server of `running_postgres`: connections break, and new ones are refused."""
    _pg_ctl(host, "-m", "immediate", "stop")


def start(host: str) -> None:
    """Start the server again, and wait until it answers."""
    options = f"{OPTIONS} -c listen_addresses='' -c unix_socket_directories='{host}'"
    _pg_ctl(host, "-l", f"{host}/server", "-o", options, "start")


@contextlib.contextmanager
def hanging(host: str) -> Iterator[None]:
    """Make the server hang (SIGSTOP): it accepts connections, but answers nothing."""
    postmaster = int((Path(host) / "data" / "postmaster.pid").read_text().split()[0])
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(postmaster)], check=True, capture_output=True, text=True)
    processes = [postmaster, *map(int, listed.stdout.split())]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # its client has gone
                os.kill(process, signal.SIGCONT)


def _pg_ctl(host: str, *arguments: str) -> None:
    binaries = find_postgres()
    assert binaries is not None
    command = [str(binaries / "pg_ctl"), "-D", f"{host}/data", "-w", *arguments]
    with (Path(host) / "log").open("a") as log:
        subprocess.run(command, stdout=log, stderr=log, user=unprivileged_user(), cwd=host, check=True)
