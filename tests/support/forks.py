"""Starts Python programs. If possible, they are forks of `tests.support.fork_server`, which start faster."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]

#: The environment variables of the process that forks.
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
_lock = threading.Lock()
_control: socket.socket | None = None


class Fork:
    """A program in a fork. Its methods are those of `subprocess.Popen` that tests use.

    Args:
        program: the message to `tests.support.fork_server`.
        files: the files that become standard input, standard output and standard error.
    """

    def __init__(self, program: Mapping[str, object], *files: int) -> None:
        self._report, report = os.pipe()
        weakref.finalize(self, os.close, self._report)
        try:
            socket.send_fds(_fork_server(), [json.dumps(program).encode()], [*files, report])
        finally:
            os.close(report)
        self._lock = threading.Lock()
        self.pid = self._read()
        self.returncode: int | None = None

    def _read(self) -> int:
        number = os.read(self._report, 4)
        if not number:
            raise RuntimeError("tests.support.fork_server has ended")
        return int.from_bytes(number, sys.byteorder, signed=True)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the program has ended, and return its exit code."""
        ended = select.poll()
        ended.register(self._report, select.POLLIN)
        if not ended.poll(None if timeout is None else timeout * 1000):
            raise subprocess.TimeoutExpired(f"the process {self.pid}", timeout or 0)
        with self._lock:  # several threads may wait
            if self.returncode is None:
                self.returncode = self._read()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code; None: the program is running."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the program, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()


#: A program that was started by `start`.
Program = Fork | subprocess.Popen[bytes]


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: int = subprocess.DEVNULL,
    stdout: int,
    stderr: int,
    start_new_session: bool = False,
) -> Program:
    """Start a program. The arguments are those of `subprocess.Popen`."""
    if cwd == ROOT and list(command[:2]) == [sys.executable, "-m"] and _can_be_forked(env):
        program = {
            "module": command[2],
            "arguments": command[3:],
            "environment": dict(env),
            "new_session": start_new_session,
        }
        with open(os.devnull, "rb") as nothing:
            return Fork(program, nothing.fileno() if stdin == subprocess.DEVNULL else stdin, stdout, stderr)
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=start_new_session
    )


def _can_be_forked(environment: Mapping[str, str]) -> bool:
    """Return whether a fork can have these environment variables.

    Variables that have an effect only when a process starts must be the same as in the process that forks.
    """
    return hasattr(os, "pidfd_open") and _read_at_the_start(environment) == _read_at_the_start(_ENVIRONMENT)


def _read_at_the_start(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have an effect only when a process starts, such as those of Python."""
    return {name: value for name, value in environment.items() if name.startswith(("LD_", "MALLOC_", "PYTHON", "TZ"))}


def _fork_server() -> socket.socket:
    """Return the socket of the process that forks. It is started on the first call."""
    global _control
    with _lock:
        if _control is None:
            _control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with other:
                command = [sys.executable, "-m", "tests.support.fork_server", str(other.fileno())]
                process = subprocess.Popen(command, cwd=ROOT, env=_ENVIRONMENT, pass_fds=[other.fileno()])
            atexit.register(process.wait)
            atexit.register(_control.close)
        return _control
