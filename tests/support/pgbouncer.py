"""PgBouncer, a connection pooler in front of the PostgreSQL server of a test."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from tests.support.postgres import unprivileged_user
from tests.support.process import RestartableProcess, wait_until_listening
from tests.support.server import free_port

CONFIGURATION = """
[databases]
postgres = host={host} port=5432 dbname=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
max_client_conn = 200
default_pool_size = 20
ignore_startup_parameters = extra_float_digits
"""


def find_pgbouncer() -> Path | None:
    """Return the path of PgBouncer; None if it is not installed. Debian installs it outside of the PATH of users."""
    found = shutil.which("pgbouncer", path=os.pathsep.join([*os.get_exec_path(), "/usr/sbin"]))
    return Path(found) if found else None


class PgBouncer(RestartableProcess):
    """A PgBouncer process on a free port. Use it as a context manager, which starts and kills it.

    Args:
        host: the directory with the socket of the PostgreSQL server.
        mode: the pool mode. It decides when a server connection may be given to another client: after each transaction,
            or after the client has disconnected.
    """

    def __init__(self, host: str, mode: Literal["transaction", "session"]) -> None:
        # The temporary directory of pytest cannot be used, because only its owner can enter it.
        self._temporary = tempfile.TemporaryDirectory(prefix="cable-pgbouncer-")
        folder = Path(self._temporary.name)
        super().__init__(folder / "log")
        self.port = free_port()
        self._user = unprivileged_user()
        self._configuration = folder / "pgbouncer.ini"
        self._configuration.write_text(CONFIGURATION.format(host=host, port=self.port, folder=folder, mode=mode))
        (folder / "users").write_text('"postgres" ""\n')
        self._log.touch()
        if self._user is not None:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, self._user)

    def start(self) -> None:
        """Start the process, and wait until it accepts connections."""
        program = find_pgbouncer()
        if program is None:
            raise RuntimeError("PgBouncer is not installed")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, self._configuration], stdout=log, stderr=subprocess.STDOUT, user=self._user
            )
        if not wait_until_listening(self._process, self.port):
            output = self.log
            self.kill()
            raise RuntimeError(f"PgBouncer did not start:\n{output}")

    def kill(self) -> None:
        """Kill the process, and delete its files."""
        super().kill()
        self._temporary.cleanup()
