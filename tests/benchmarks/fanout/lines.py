"""A process that reads commands as lines of JSON, and answers each with a line of JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class LineProcess:
    """A process that answers commands. Use it as a context manager, which kills the process at the end.

    Args:
        command: the program and its arguments.
        environment: the environment variables; None: those of this process.
        cwd: the working directory; None: that of this process.
    """

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=cwd
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()

    def end(self) -> None:
        """Kill the process, without waiting for its current command."""
        self._process.kill()

    def ask(self, do: str, **options: Any) -> dict[str, Any]:
        """Send a command, and return the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **options}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if answer.get("error"):
            raise RuntimeError(f"{do}: {answer['error']}")
        return answer
