"""A real Celery worker of the project in tests/integration/project, with a pool of forked processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.client import unique
from tests.support.forks import start
from tests.support.process import OwnProcess
from tests.support.redis import RedisServer
from tests.support.server import PROJECT, ROOT, Server

#: How long, in seconds, a worker may take to start or to stop.
PATIENCE = 30.0


def use_broker(redis: RedisServer, *servers: Server) -> None:
    """Make servers that have not been started yet send tasks to a new queue in Redis."""
    broker = {"CABLE_TEST_BROKER": redis.url, "CABLE_TEST_QUEUE": unique("queue-")}
    for server in servers:
        server.environment |= broker


class Worker(OwnProcess):
    """A worker process, which starts a new child for each child that has ended.

    Use it as a context manager, which starts and stops it.

    Args:
        folder: the folder for the log.
        environment: the environment variables of the process. They name the broker.
        processes: the number of child processes.
        app: the module with the Celery application.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *, processes: int = 2, app: str = f"{PROJECT}.celery"
    ) -> None:
        super().__init__(folder / "worker.log")
        self._environment = environment
        self._processes = processes
        self._app = app

    @property
    def dead_children(self) -> list[str]:
        """The lines of the log about children that have ended unexpectedly, for example by SIGKILL."""
        return [line for line in self.log.splitlines() if " exited with " in line]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "celery", "-A", self._app, "worker", "--pool", "prefork"]
        command += ["--concurrency", str(self._processes), "--loglevel", "INFO", "--without-gossip", "--without-mingle"]
        with self._log.open("ab") as log:
            output, variables = log.fileno(), self._environment
            self._process = start(
                command, cwd=ROOT, env=variables, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE
        while " ready." not in self.log:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise RuntimeError(f"the worker did not start:\n{self.log}")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def kill(self) -> None:
        """Kill the worker and its children, as if their host lost its power."""
        assert self._process is not None
        # The children of the worker are in the same process group.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)

    def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
