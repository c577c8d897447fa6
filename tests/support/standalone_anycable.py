"""anycable-go without RPC, for tests that need no calls to Django, such as those of broadcasts and tokens."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from tests.support.anycable import QUIET, find_anycable
from tests.support.process import RestartableProcess
from tests.support.server import LOCAL, PATIENCE, free_port


class StandaloneAnyCable(RestartableProcess):
    """A process of anycable-go with `--norpc`. Use it as a context manager, which starts and kills it.

    It keeps its port over restarts.

    Args:
        folder: the folder for the log. It is created if it does not exist.
        options: further options of anycable-go, such as `public=True` or `secret="…"`.
    """

    def __init__(self, folder: Path, **options: str | bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "anycable.log")
        self.options = options
        self.port = free_port()

    @property
    def url(self) -> str:
        """The WebSocket URL for clients."""
        return f"ws://127.0.0.1:{self.port}/cable"

    def start(self) -> None:
        """Start the process, and wait until it is healthy."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), env={**os.environ, **QUIET}, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + PATIENCE
        while not self._is_healthy():
            if not self.alive or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"anycable-go did not start:\n{self.log}")
            time.sleep(0.02)

    def _command(self) -> Sequence[str]:
        options = {"host": "127.0.0.1", "port": str(self.port), "norpc": True, "log_level": "debug", **self.options}
        words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value]
        return [str(find_anycable()), *words]

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", **LOCAL).is_success
        except httpx.TransportError:
            return False
