"""Runs the deployment in demo_project/deploy with its own commands and files, on other ports and paths."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.process import wait_until_listening
from tests.support.server import PATIENCE, ROOT, Server, free_port

DEPLOY = ROOT / "demo_project" / "deploy"
#: The prefix of nginx in the Procfile.
PREFIX = "demo_project/deploy/run"


def find_nginx() -> Path | None:
    """Return the path of nginx, or None. Debian installs it outside of the PATH of users."""
    found = shutil.which("nginx", path=os.pathsep.join([*os.get_exec_path(), "/usr/sbin"]))
    return Path(found) if found else None


def procfile() -> dict[str, list[str]]:
    """Return the commands of the Procfile by name, each as a list of arguments."""
    lines = (DEPLOY / "Procfile").read_text().splitlines()
    return {name: shlex.split(command) for name, command in (line.split(": ", 1) for line in lines)}


def replaced(text: str, old: str, new: str) -> str:
    """Replace a part of a string, and check that the string contains the part exactly once."""
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {text!r}"
    return text.replace(old, new)


class DeployedServer(Server):
    """A server of the test project that is started with the command of the Procfile, on another port."""

    def _command(self) -> list[str]:
        python, *words = procfile()[f"web-{self.kind}"]
        assert python == "python"
        return [sys.executable, *(re.sub(r"\b800[12]\b", str(self.port), word) for word in words)]


class Nginx:
    """nginx with the configuration of the demo. Use it as a context manager, which starts and stops it.

    Args:
        servers: the servers that nginx forwards to. They must be running, because their ports are needed.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self.port = 0
        self._servers = servers
        # The temporary directory of pytest cannot be used, because only its owner can enter it.
        self._temporary = tempfile.TemporaryDirectory(prefix="cable-nginx-")
        self._folder = Path(self._temporary.name)
        self._run = self._folder / "run"
        self._run.mkdir()
        self._log = self._folder / "log"
        self._log.touch()
        self._user = "nobody" if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
        self._temporary.cleanup()

    @property
    def base(self) -> str:
        """The URL of the pages."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The WebSocket URL."""
        return f"ws://127.0.0.1:{self.port}/cable"

    @property
    def static(self) -> Path:
        """The folder from which nginx serves static files."""
        return self._run / "static"

    def requests(self, path: str) -> list[tuple[str, str]]:
        """Return the status of each GET request for a path, and the statuses of the servers that nginx tried for it.

        The latter are a string, for example `"403, 101"`, or `"-"` if nginx tried no server.
        """
        line = rf'"GET {re.escape(path)}" (\d+) \S+(?:, \S+)* (\d+(?:, \d+)*|-) [\d.]+$'
        return re.findall(line, self._log.read_text(), re.MULTILINE)

    def start(self) -> None:
        """Start nginx on a free port, and wait until it listens."""
        binary = find_nginx()
        assert binary is not None, "nginx is not installed"
        command = shlex.split(replaced(shlex.join(procfile()["nginx"]), PREFIX, str(self._run)))
        for _ in range(5):
            self.port = free_port()
            self._configure()
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [str(binary), *command[1:]], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, user=self._user
                )
            if wait_until_listening(self._process, self.port):
                return
            if "in use" not in self._log.read_text():
                break
        raise RuntimeError(f"nginx did not start:\n{self._log.read_text()}")

    def reload(self) -> None:
        """Reload the configuration, which starts new workers (`nginx -s reload`)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def _configure(self) -> None:
        text = (DEPLOY / "nginx.conf").read_text()
        (self._folder / "nginx.conf").write_text(replaced(text, "listen 8080;", f"listen 127.0.0.1:{self.port};"))
        upstream = (DEPLOY / "upstream.conf").read_text()
        for port, server in zip((8001, 8002), self._servers, strict=True):
            upstream = replaced(upstream, f"127.0.0.1:{port} ", f"127.0.0.1:{server.port} ")
        (self._folder / "upstream.conf").write_text(upstream)
        if self._user is not None:
            for path in (self._folder, self._run, self._log):
                shutil.chown(path, self._user)
