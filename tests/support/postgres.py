"""A PostgreSQL server of the tests' own: in a temporary directory, on a Unix socket, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Faster, and all that is lost is the tests' data after a power cut.
OPTIONS = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c max_connections=60"


def find_postgres() -> Path | None:
    """Return the directory that holds `initdb` and `pg_ctl`, or None."""
    places = [*os.get_exec_path(), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    found = shutil.which("initdb", path=os.pathsep.join(places))
    return Path(found).resolve().parent if found else None


def unprivileged_user() -> str | None:
    """Return who runs the server: it refuses to run as root."""
    if os.getuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


@contextmanager
def running_postgres(binaries: Path) -> Iterator[str]:
    """Run a server; give the directory of its socket, which is its HOST, with the superuser `postgres`."""
    user = unprivileged_user()
    base = Path(tempfile.mkdtemp(prefix="cable-pg-"))

    def run(*command: str) -> None:
        # Output goes to a file: the server would keep a pipe open.
        with (base / "log").open("a") as log:
            done = subprocess.run(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, user=user, cwd=base, check=False
            )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{(base / 'log').read_text()}")

    try:
        if user is not None:
            shutil.chown(base, user)
        data = str(base / "data")
        run(
            str(binaries / "initdb"),
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        )
        run(
            str(binaries / "pg_ctl"), "-D", data, "-w", "-l", str(base / "server"), "-o",
            f"{OPTIONS} -c listen_addresses='' -c unix_socket_directories='{base}'", "start",
        )  # fmt: skip
        try:
            yield str(base)
        finally:
            run(str(binaries / "pg_ctl"), "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(base, ignore_errors=True)
