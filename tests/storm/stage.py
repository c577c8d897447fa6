"""The processes of a storm: two servers on one database, Redis, another process, a Celery worker, and proxies."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from tests.support.celery import Worker
from tests.support.clock import wrong_clock
from tests.support.failover import PostgresPair, RedisPair
from tests.support.faults import FaultProxy
from tests.support.postgres import find_postgres
from tests.support.redis import RedisServer, find_binaries
from tests.support.server import Kind, OtherProcess, Server, environment, make_database
from tests.support.started import Started

from .plan import POSTGRES_MOVES, REDIS_MOVES, Plan

KINDS: tuple[Kind, ...] = ("daphne", "uvicorn")


class Stage(Started):
    """Starts and stops the processes of a storm. Use it with `async with`.

    Args:
        plan: the plan of the storm, which names the engine.
        folder: the folder for databases and logs.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        super().__init__()
        self.plan = plan
        self.folder = folder
        #: The file in which the processes record the presence signals that they send.
        self.signals = folder / "signals"
        self._variables = {"CABLE_TEST_SIGNALS": str(self.signals)}
        self.servers: list[Server] = []
        #: The proxy that clients connect to. It forwards each connection to a random server.
        self.web: FaultProxy
        #: The Redis and PostgreSQL servers, if the plan has any. All processes connect to the proxies of these servers.
        self.redis: RedisPair | None = None
        self.postgres: PostgresPair | None = None
        #: The path of the SQLite file, which is empty if the database is in PostgreSQL.
        self.database: Path
        self.broker: RedisServer
        self.beside: OtherProcess
        self.worker: Worker

    @property
    def url(self) -> str:
        """The URL of the cable."""
        return f"ws://127.0.0.1:{self.web.port}/cable"

    def dead_processes(self) -> list[str]:
        """Return a description of each process that has ended by itself. Call this when no fault is being made."""
        alive: dict[str, bool] = {server.kind: server.alive for server in self.servers}
        alive |= {"the process for calls": self.beside.alive, "the worker": self.worker.alive}
        alive["the broker"] = self.broker.alive
        if self.redis is not None:
            alive["Redis"] = self.redis.primary.alive
            alive["the replica of Redis"] = self.redis.replica.alive or not self.redis.replicated
        dead = [f"{name} has ended by itself" for name in alive if not alive[name]]
        return dead + [f"a child of the worker has ended: {line}" for line in self.worker.dead_children]

    async def _start(self) -> None:
        if self.plan.database == "postgres":
            self.postgres = await self._start_postgres()
            self._variables["CABLE_TEST_POSTGRES"] = "127.0.0.1"
            self._variables["CABLE_TEST_POSTGRES_PORT"] = str(self.postgres.address.port)
        self.database = await asyncio.to_thread(make_database, self.folder, **self._variables)
        redis_url = None
        if self.plan.engine == "redis":
            self.redis = await self._start_redis()
            redis_url = f"redis://127.0.0.1:{self.redis.address.port}/0"
        self.broker = RedisServer(self.folder / "broker")
        await self._enter_in_thread(self.broker)
        settings = self.plan.settings(redis_url)
        self.servers = [self._server(kind, settings) for kind in KINDS]
        await asyncio.gather(*(self._enter_in_thread(server) for server in self.servers))
        self.web = await self._stack.enter_async_context(FaultProxy(*(server.port for server in self.servers)))
        # The clock of the last server is always right.
        self.beside = self._stack.enter_context(OtherProcess(self.servers[-1], self.folder / "process.log"))
        tasks = {"CABLE_TEST_BROKER": self.broker.url, "CABLE_TEST_RESULTS": self.broker.url}
        variables = {**self._variables, **self._clock("worker"), **tasks}
        self.worker = Worker(self.folder, environment(self.database, settings, **variables))
        await self._enter_in_thread(self.worker)

    def _server(self, kind: Kind, settings: dict[str, Any]) -> Server:
        variables = {**self._variables, **self._clock(kind)}
        return Server(kind, self.folder, self.database, settings, shared=True, **variables)

    def _clock(self, name: str) -> dict[str, str]:
        ahead = self.plan.wrong_clocks.get(name)
        return {} if ahead is None else wrong_clock(ahead)

    async def _start_postgres(self) -> PostgresPair:
        binaries = find_postgres()
        if binaries is None:
            raise RuntimeError("PostgreSQL (initdb, pg_ctl) is not installed; use --database sqlite")
        pair = PostgresPair(binaries, replicated=self.plan.wants(*POSTGRES_MOVES))
        return await self._stack.enter_async_context(pair)

    async def _start_redis(self) -> RedisPair:
        binaries = [one for one in find_binaries() if self.plan.redis in ("", one.name)]
        if not binaries:
            raise RuntimeError(f"the server {self.plan.redis or 'Redis or Valkey'} is not installed")
        pair = RedisPair(self.folder, binaries[0], replicated=self.plan.wants(*REDIS_MOVES))
        return await self._stack.enter_async_context(pair)

    async def _enter_in_thread(self, thing: Server | RedisServer | Worker) -> None:
        await asyncio.to_thread(thing.__enter__)
        self._stack.callback(thing.__exit__, None, None, None)


def make_folder() -> Path:
    """Create a folder for the files of a storm, and return its path."""
    return Path(tempfile.mkdtemp(prefix="cable-storm-"))
