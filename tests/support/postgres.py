"""PostgreSQL servers of the tests' own: each in a temporary directory, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

#: Faster, and all that is lost is the tests' data after a power cut.
OPTIONS = (
    "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=60 "
    "-c max_wal_size=64MB -c min_wal_size=32MB"
)


def find_postgres() -> Path | None:
    """Return the directory that holds `initdb` and `pg_ctl`, or None."""
    places = [*os.get_exec_path(), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    found = shutil.which("initdb", path=os.pathsep.join(places))
    return Path(found).resolve().parent if found else None


def _unprivileged_user() -> str | None:
    """Return who runs the server: it refuses to run as root."""
    if os.getuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


class PostgresServer:
    """A server with the superuser `postgres`, who needs no password.

    Args:
        binaries: the directory that holds `initdb` and `pg_ctl`.
        port: on the loopback; 0: the server listens on a Unix socket in `folder` only.
    """

    def __init__(self, binaries: Path, port: int = 0) -> None:
        self.port = port
        self.folder = Path(tempfile.mkdtemp(prefix="cable-pg-"))
        self._binaries = binaries
        self._data = self.folder / "data"
        self._user = _unprivileged_user()
        self._running = False
        if self._user is not None:
            shutil.chown(self.folder, self._user)

    def create(self) -> None:
        """Make a new, empty database cluster."""
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def copy(self, port: int) -> None:
        """Become a standby: copy the server behind a port of the loopback, and follow it from the next start on."""
        shutil.rmtree(self._data, ignore_errors=True)
        source = ("-h", "127.0.0.1", "-p", str(port), "-U", "postgres")
        self._run("pg_basebackup", *source, "-D", self._data, "-X", "stream", "-c", "fast", "-R", "--no-sync")

    def start(self) -> None:
        """Start the server, and wait until it takes connections; a standby takes queries that only read."""
        address = "127.0.0.1" if self.port else ""
        options = f"{OPTIONS} -c listen_addresses='{address}' -c unix_socket_directories='{self.folder}'"
        if self.port:
            options += f" -c port={self.port}"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", self.folder / "server", "-o", options, "start")
        self._running = True

    def stop(self, mode: Literal["fast", "immediate"] = "immediate") -> None:
        """Stop the server if it runs.

        Args:
            mode: "fast": as an administrator does. The standbys have everything then. "immediate": as a crash does.
        """
        if self._running:
            self._running = False
            self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    def promote(self) -> None:
        """Become a primary, with the data that has arrived so far."""
        self._run("pg_ctl", "-D", self._data, "-w", "promote")

    def remove(self) -> None:
        """Stop the server, and delete its files."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str | Path) -> None:
        # Output goes to a file: the server would keep a pipe open.
        path = self.folder / "log"
        with path.open("a") as log:
            done = subprocess.run(
                [self._binaries / program, *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=self._user,
                cwd=self.folder,
                check=False,
            )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{path.read_text()}")


@contextmanager
def running_postgres(binaries: Path) -> Iterator[str]:
    """Run a server; give the directory of its socket, which is its HOST, with the superuser `postgres`."""
    server = PostgresServer(binaries)
    try:
        server.create()
        server.start()
        yield str(server.folder)
    finally:
        server.remove()
