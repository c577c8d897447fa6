"""A primary and its replica behind a proxy that can forward to either. Use a pair with `async with`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import psycopg
import redis

from tests.support.faults import FaultProxy
from tests.support.postgres import PostgresServer
from tests.support.redis import Binary, RedisServer
from tests.support.server import free_port
from tests.support.started import Started

#: How long, in seconds, to wait until a replica follows its primary.
PATIENCE = 20.0


class Pair(Started):
    """Two servers, the proxy that clients connect to, and the proxy through which the replica follows the primary."""

    #: The proxy for clients. It forwards to the primary. Open connections keep their server until they are cut.
    address: FaultProxy
    #: The proxy for the replica. It forwards to the primary, too. Writes that it holds back are lost in a failover.
    relay: FaultProxy

    def __init__(self, *, replicated: bool) -> None:
        super().__init__()
        self.replicated = replicated

    async def follows(self) -> bool:
        """Wait until the replica follows the primary. Return False if there is none, or if this takes too long."""
        return self.replicated and await asyncio.to_thread(_wait_for, self._is_followed)

    async def _serve(self, port: int) -> None:
        self.address = await self._stack.enter_async_context(FaultProxy(port))
        self.relay = await self._stack.enter_async_context(FaultProxy(port))

    async def _lose(self, seconds: float) -> None:
        """Keep the new writes of the primary from the replica, which never receives them.

        Args:
            seconds: how long the primary accepts such writes.
        """
        self.relay.stall()
        await asyncio.sleep(seconds)

    def _cut_relay(self) -> None:
        self.relay.interrupt()
        self.relay.resume()

    def _lead_relay(self, port: int) -> None:
        self.relay.move(port)
        self.relay.accept()

    @abstractmethod
    def _is_followed(self) -> bool: ...


class RedisPair(Pair):
    """Two Redis or Valkey servers; each keeps running as the other's replica when it is not the primary.

    Args:
        folder: the folder for their data and logs.
        binary: the server program; None: the first that is found.
        replicated: whether there is a replica.
    """

    def __init__(self, folder: Path, binary: Binary | None = None, *, replicated: bool = True) -> None:
        super().__init__(replicated=replicated)
        # By default, newer servers wait for further replicas before they send their data to the first replica.
        options = {"repl-diskless-sync-delay": "0"}
        self.primary = RedisServer(folder / "redis", binary, options)
        self.replica = RedisServer(folder / "replica", binary, options)

    async def move(self, *, losing: float = 0.0, cut: bool = False) -> None:
        """Demote the primary, promote the replica, and make both proxies forward to the new primary.

        The former primary already refuses writes when the replica is promoted.

        Args:
            losing: how many seconds of writes to lose.
            cut: whether connections to the demoted server are reset.
        """
        if losing:
            await self._lose(losing)
        # The relay still forwards to the former primary. If it stayed open, the former primary would follow itself.
        self._cut_relay()
        await asyncio.to_thread(self.primary.cli, "REPLICAOF", "127.0.0.1", self.relay.port)
        await asyncio.to_thread(self.replica.promote)
        self.primary, self.replica = self.replica, self.primary
        self._lead_relay(self.primary.port)
        self.address.move(self.primary.port)
        if cut:
            self.address.cut()

    async def _start(self) -> None:
        await self._run(self.primary)
        await self._serve(self.primary.port)
        if self.replicated:
            await self._run(self.replica)
            await asyncio.to_thread(self.replica.cli, "REPLICAOF", "127.0.0.1", self.relay.port)

    async def _run(self, server: RedisServer) -> None:
        self._stack.callback(server.kill)
        await asyncio.to_thread(server.start)

    def _is_followed(self) -> bool:
        known = self.replica.cli("INFO", "replication")
        return bool(known["role"] == "slave" and known["master_link_status"] == "up")


class PostgresPair(Pair):
    """Two PostgreSQL servers; after each failover, the standby is copied from the new primary.

    Args:
        binaries: the directory with `initdb` and `pg_ctl`.
        replicated: whether there is a standby.
    """

    def __init__(self, binaries: Path, *, replicated: bool = True) -> None:
        super().__init__(replicated=replicated)
        self._binaries = binaries
        self.primary: PostgresServer
        self.standby: PostgresServer

    async def move(self, *, losing: float = 0.0) -> None:
        """Stop the primary, promote the standby, and make both proxies forward to the new primary.

        The stopped server becomes the standby.

        Args:
            losing: how many seconds of commits to lose; 0: none.
        """
        if losing:
            await self._lose(losing)
            self._cut_relay()
        await asyncio.to_thread(self.primary.stop, "immediate" if losing else "fast")
        await asyncio.to_thread(self.standby.promote)
        self.primary, self.standby = self.standby, self.primary
        self._lead_relay(_port(self.primary))
        self.address.move(_port(self.primary))
        await asyncio.to_thread(self._follow)

    async def _start(self) -> None:
        self.primary, self.standby = self._server(), self._server()
        await asyncio.to_thread(self.primary.initialize)
        await asyncio.to_thread(self.primary.start)
        await self._serve(_port(self.primary))
        if self.replicated:
            await asyncio.to_thread(self._follow)

    def _server(self) -> PostgresServer:
        server = PostgresServer(self._binaries, free_port())
        self._stack.callback(server.delete)
        return server

    def _follow(self) -> None:
        self.standby.copy(self.primary, self.relay.port)
        self.standby.start()

    def _is_followed(self) -> bool:
        address = f"host=127.0.0.1 port={self.primary.port} user=postgres dbname=postgres"
        with contextlib.closing(psycopg.connect(address)) as connection:
            query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            return connection.execute(query).fetchone() == (1,)


def _port(server: PostgresServer) -> int:
    assert server.port is not None
    return server.port


def _wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, psycopg.OperationalError):
            if condition():
                return True
        time.sleep(0.05)
    return False
