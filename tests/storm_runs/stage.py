"""The processes of a storm of runs: two servers, writers, a process for calls, a store, and a proxy for the readers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from tests.support.faults import FaultProxy
from tests.support.postgres import find_postgres, running_postgres
from tests.support.process import OwnProcess
from tests.support.redis import RedisServer
from tests.support.server import ROOT, WITHOUT_DAPHNE, CallFailed, Kind, OtherProcess, Server, make_database
from tests.support.started import Started

from .plan import PATIENCE, Plan, now

KINDS: tuple[Kind, ...] = ("daphne", "uvicorn")
#: The user who owns all runs.
USER = "storm"


class Writer(OwnProcess):
    """A writer process.

    Args:
        kind: "sync" or "async".
        log: the file for its output.
        environment: its environment variables.
    """

    def __init__(self, kind: str, log: Path, environment: dict[str, str]) -> None:
        super().__init__(log)
        self.kind = kind
        self._environment = environment
        self._input: IO[bytes] | None = None

    def start(self) -> None:
        """Start the process."""
        with self._log.open("ab") as log:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "tests.storm_runs.writer", self.kind],
                cwd=ROOT, env=self._environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._input = process.stdin

    def give(self, job: dict[str, Any]) -> int:
        """Send a job, and return the id of the process. If the process has died, the job is lost: return 0."""
        assert self._input is not None
        try:
            self._input.write(json.dumps(job).encode() + b"\n")
            self._input.flush()
        except OSError:
            return 0
        return self.pid

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""
        if self._process is not None and self._input is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait(30)
            with contextlib.suppress(BrokenPipeError):
                self._input.close()


class Stage(Started):
    """Starts and stops the processes of a storm. Use it with `async with`.

    Args:
        plan: the plan of the storm.
        folder: the folder for databases and logs.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__()
        self.plan = plan
        self.folder = folder
        self.servers: list[Server] = []
        self.writers: list[Writer] = []
        #: The proxy to which the readers connect. It forwards each connection to a random server.
        self.web: FaultProxy
        self.calls: OtherProcess
        #: The headers of a browser in which the user is logged in.
        self.headers: dict[str, str] = {}

    @property
    def address(self) -> str:
        """The address of the proxy, with its port."""
        return f"127.0.0.1:{self.web.port}"

    def dead_processes(self) -> list[str]:
        """Return a description of each process that has ended by itself. Call this when no fault is being made."""
        alive: dict[str, bool] = {server.kind: server.alive for server in self.servers}
        alive |= {f"writer {number}": writer.alive for number, writer in enumerate(self.writers)}
        alive |= {"the process for calls": self.calls.alive}
        return [f"{name} has ended by itself" for name, is_alive in alive.items() if not is_alive]

    async def call(self, name: str, *args: Any) -> Any:
        """Make a call in the process for calls. While SQLite is locked, repeat it."""
        end = now() + PATIENCE
        while True:
            try:
                return await self.calls.call(name, *args)
            except CallFailed as error:
                if "database is locked" not in str(error) or now() > end:
                    raise

    async def _start(self) -> None:
        stack, variables, redis_url = self._stack, {}, None
        if self.plan.database == "postgres":
            binaries = find_postgres()
            if binaries is None:
                raise RuntimeError("PostgreSQL (initdb, pg_ctl) is not installed; use --database sqlite")
            variables["CABLE_TEST_POSTGRES"] = stack.enter_context(running_postgres(binaries, connections=200))
        database = await asyncio.to_thread(make_database, self.folder, **variables)
        if self.plan.database == "sqlite":
            # The system check W001 advises this. Without it, views that read the login session wait for the writers.
            with contextlib.closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
        if self.plan.engine == "redis":
            redis_url = stack.enter_context(RedisServer(self.folder / "redis")).url
        settings = self.plan.settings(redis_url)
        self.servers = [Server(kind, self.folder, database, settings, shared=True, **variables) for kind in KINDS]
        for server in self.servers:
            stack.callback(server.kill)
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in self.servers))
        self.web = await stack.enter_async_context(FaultProxy(*(server.port for server in self.servers)))
        self.calls = stack.enter_context(OtherProcess(self.servers[-1], self.folder / "calls.log"))
        csrf = "c" * 32
        cookie = await self.servers[-1].sign_in(USER)
        self.headers = {"Cookie": f"{cookie}; csrftoken={csrf}", "X-CSRFToken": csrf}
        environment = self.servers[-1].environment | WITHOUT_DAPHNE
        for number in range(self.plan.writers):
            kind = "async" if number % 2 else "sync"
            self.writers.append(Writer(kind, self.folder / f"writer-{number}.log", environment))
            stack.callback(self.writers[-1].kill)
            self.writers[-1].start()
