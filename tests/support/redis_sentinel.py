"""A Redis primary, its replicas, and Sentinels that promote a replica when the primary fails, for tests."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import redis

from tests.support.process import OwnProcess
from tests.support.redis import NO_RETRY, PATIENCE, Binary, RedisServer, wait_for
from tests.support.server import free_port

#: The name of the service that the Sentinels monitor.
SERVICE = "cable-test"


class Sentinel(OwnProcess):
    """A Sentinel process. Use it as a context manager, which starts and kills it.

    Args:
        folder: the folder for its configuration and log.
        binary: the server program.
        port: the port of the primary that it monitors at first.
        quorum: how many Sentinels must agree that the primary has failed.
        down_after: how long, in seconds, a server may be silent before it counts as failed.
        options: further options of its configuration.
    """

    def __init__(
        self,
        folder: Path,
        binary: Binary,
        port: int,
        *,
        quorum: int,
        down_after: float,
        options: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        super().__init__(folder / "sentinel.log")
        self.port = free_port()
        self._binary = binary
        self._config = folder / "sentinel.conf"
        self._config.write_text(
            f"bind 127.0.0.1\nport {self.port}\ndir {folder}\n"
            + "".join(f"{name} {value}\n" for name, value in (options or {}).items())
            + f"sentinel monitor {SERVICE} 127.0.0.1 {port} {quorum}\n"
            f"sentinel down-after-milliseconds {SERVICE} {round(down_after * 1000)}\n"
            f"sentinel failover-timeout {SERVICE} 4000\n"
        )

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary.path, str(self._config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.alive:
            assert self._process is not None
            self._process.kill()
            self._process.wait(PATIENCE)

    def hurry(self) -> None:
        """Make the Sentinel check the servers more often than every 10 s, if it can (Redis 7 or later)."""
        with self._connect() as client, contextlib.suppress(redis.ResponseError):
            client.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", 200, "PUBLISH-PERIOD", 200)

    def ask(self, *command: str) -> Any:
        """Run a command of Sentinels about the service, and return the answer without a conversion."""
        with self._connect() as client:
            client.response_callbacks.clear()
            return client.execute_command("SENTINEL", *command, SERVICE)

    def _connect(self) -> redis.Redis:
        return redis.Redis(port=self.port, protocol=2, decode_responses=True, socket_timeout=PATIENCE, retry=NO_RETRY)


class RedisSentinels:
    """A primary, its replica and three Sentinels. Use it as a context manager.

    Args:
        folder: the folder for the files of all processes.
        binary: the server program; None: the first that is found.
        down_after: how long, in seconds, a server may be silent before it counts as failed.
    """

    def __init__(self, folder: Path, binary: Binary | None = None, *, down_after: float = 1.0) -> None:
        options = {"repl-diskless-sync-delay": "0"}
        self.servers = [RedisServer(folder / name, binary, options) for name in ("first", "second")]
        self.sentinels: list[Sentinel] = []
        self._folder = folder
        self._down_after = down_after
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            first, second = (stack.enter_context(server) for server in self.servers)
            second.follow(first)
            for number in range(3):
                folder = self._folder / f"sentinel-{number}"
                sentinel = Sentinel(folder, first.binary, first.port, quorum=2, down_after=self._down_after)
                self.sentinels.append(stack.enter_context(sentinel))
            for sentinel in self.sentinels:
                wait_for(lambda each=sentinel: each.hurry() is None, "a Sentinel does not answer")
            self.wait_until_whole()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """The URL for `REDIS_URL`."""
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{places}/{SERVICE}/0"

    def primary(self) -> RedisServer:
        """Return the server that all Sentinels regard as the primary."""
        found: set[str] = set()

        def agree() -> bool:
            ports = {each.ask("GET-MASTER-ADDR-BY-NAME")[1] for each in self.sentinels if each.alive}
            found.clear()
            found.update(ports)
            return len(ports) == 1

        wait_for(agree, "the Sentinels do not agree on the primary")
        return next(server for server in self.servers if server.port == int(next(iter(found))))

    def fail_over(self) -> RedisServer:
        """Let the Sentinels promote the replica while the primary is running, and return the new primary."""
        former = self.primary()
        begun = False

        def promoted() -> bool:
            nonlocal begun
            if not begun:
                self.sentinels[0].ask("FAILOVER")  # raises an error until the Sentinel knows a suitable replica
                begun = True
            return self.primary() is not former

        wait_for(promoted, "the Sentinels did not promote the replica")
        return self.primary()

    def wait_for_another(self, former: RedisServer) -> RedisServer:
        """Wait until the Sentinels have promoted a server that is not `former`, and return this server."""
        wait_for(lambda: self.primary() is not former, "the Sentinels did not promote the replica")
        return self.primary()

    def wait_until_whole(self) -> None:
        """Wait until the Sentinels know each other and a running replica."""
        wait_for(lambda: all(map(_knows_all, self.sentinels)), "the Sentinels do not know each other and a replica")


def _knows_all(sentinel: Sentinel) -> bool:
    replicas = [dict(zip(each[::2], each[1::2], strict=True)) for each in sentinel.ask("REPLICAS")]
    healthy = [each for each in replicas if each["flags"] == "slave" and each["master-link-status"] == "ok"]
    return bool(healthy) and len(sentinel.ask("SENTINELS")) == 2
