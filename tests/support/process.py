"""A process that a test starts and stops: the base class of servers, workers and stores."""

from __future__ import annotations

from pathlib import Path

from tests.support.forks import Program


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
