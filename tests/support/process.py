"""A process that a test starts and stops: the base class of servers, workers and stores."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.forks import Program

#: How long, in seconds, a process may take to listen, or to end after SIGKILL.
PATIENCE = 30.0


def wait_until_listening(process: Program, port: int) -> bool:
    """Wait until a port of this host accepts connections. Return False if the process has ended, or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.02)
    return False


class OwnProcess:
    """A process with a log file. Subclasses start and stop it.

    Args:
        log: the file for its output.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: Program | None = None

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process is not None, f"{type(self).__name__}: the process was not started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """The output of the process since its first start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class RestartableProcess(OwnProcess):
    """A process that can be started again. Use it as a context manager, which starts and kills it."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process, and wait until it can be used."""
        raise NotImplementedError

    def kill(self) -> None:
        """Kill the process (SIGKILL), if it is running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE)
