"""A PostgreSQL server for tests. It runs in a temporary directory, which is deleted afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Options that make the server faster. They are not safe against power cuts.
OPTIONS = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off"


def find_postgres() -> Path | None:
    """Return the directory with `initdb` and `pg_ctl`, or None."""
    places = [*os.get_exec_path(), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    found = shutil.which("initdb", path=os.pathsep.join(places))
    return Path(found).resolve().parent if found else None


def unprivileged_user() -> str | None:
    """Return another user for the server if this process runs as root, which PostgreSQL refuses; otherwise None."""
    if os.getuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


class PostgresServer:
    """A server that listens on a Unix socket in its directory. The superuser `postgres` needs no password.

    Args:
        binaries: the directory with `initdb` and `pg_ctl`.
        port: a port on 127.0.0.1 on which the server also listens; None: it listens only on the Unix socket.
        connections: the maximum number of connections.
    """

    def __init__(self, binaries: Path, port: int | None = None, connections: int = 60) -> None:
        self.port = port
        self._connections = connections
        self._binaries = binaries
        self._user = unprivileged_user()
        self._base = Path(tempfile.mkdtemp(prefix="cable-pg-"))
        self._data = str(self._base / "data")
        if self._user is not None:
            shutil.chown(self._base, self._user)

    @property
    def host(self) -> str:
        """The directory of the socket, for HOST in Django's settings."""
        return str(self._base)

    def initialize(self) -> None:
        """Create a new cluster."""
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")

    def copy(self, primary: PostgresServer, relay: int | None = None) -> None:
        """Copy the cluster of a running server, and configure the copy as its standby.

        Args:
            primary: the running server.
            relay: a port on 127.0.0.1, of a proxy through which the standby connects to the primary. None: it connects
                to the primary's Unix socket.
        """
        shutil.rmtree(self._data, ignore_errors=True)
        source = ["-h", primary.host] if relay is None else ["-h", "127.0.0.1", "-p", str(relay)]
        self._run("pg_basebackup", *source, "-U", "postgres", "-D", self._data, "-R", "-c", "fast", "-N")

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        listen = "-c listen_addresses=''" if self.port is None else f"-c listen_addresses=127.0.0.1 -c port={self.port}"
        options = f"{OPTIONS} -c max_connections={self._connections} {listen} -c unix_socket_directories='{self._base}'"
        self._control("-l", str(self._base / "server"), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server. With `fast`, it first sends missing data to a standby; `immediate` is like a crash."""
        self._control("-m", mode, "stop")

    def promote(self) -> None:
        """Promote a standby, and wait until it is the primary."""
        self._control("promote")

    def delete(self) -> None:
        """Stop the server if it is running, and delete its directory."""
        try:
            if (self._base / "data" / "postmaster.pid").exists():
                self.stop()
        finally:
            shutil.rmtree(self._base, ignore_errors=True)

    def _control(self, *command: str) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", *command)

    def _run(self, program: str, *arguments: str) -> None:
        # The output goes to a file, because the server would keep a pipe open.
        with (self._base / "log").open("a") as log:
            done = subprocess.run(
                [str(self._binaries / program), *arguments],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, user=self._user, cwd=self._base, check=False,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{(self._base / 'log').read_text()}")


@contextmanager
def running_postgres(binaries: Path, connections: int = 60) -> Iterator[str]:
    """Run a server with the superuser `postgres`. Yield the directory of its socket, for HOST in Django's settings."""
    server = PostgresServer(binaries, connections=connections)
    try:
        server.initialize()
        server.start()
        yield server.host
    finally:
        server.delete()
