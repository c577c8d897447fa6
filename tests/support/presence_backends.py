"""Presence stores that servers share: Redis, a Redis Cluster, an SQLite file and PostgreSQL.

Tests can make them lose their data, except for the cluster.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from tests.support.postgres import PostgresServer, find_postgres
from tests.support.redis import RedisServer
from tests.support.redis_cluster import RedisCluster
from tests.support.server import Kind, Server, make_database

TABLES = [f"reliable_cable_presence{name}" for name in ("stream", "session", "entry", "sweep")]


class PresenceBackend(ABC):
    """A store that servers share. It exists only inside a block of `running`.

    Args:
        folder: the folder for files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "database.sqlite3"
        #: Settings and environment variables of the servers.
        self.settings: Mapping[str, Any] = {}
        self.variables: dict[str, str] = {}
        self._servers = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the store, create the tables, and delete the store at the end."""
        self.database = make_database(self.folder, **self.variables)
        yield

    def make(self, kind: Kind, **settings: Any) -> Server:
        """Return a server that is not started."""
        self._servers += 1
        folder = self.folder / f"{kind}-{self._servers}"
        folder.mkdir()
        settings = {**self.settings, **settings}
        return Server(kind, folder, self.database, settings, shared=True, **self.variables)

    @abstractmethod
    def lose(self, how: str = "") -> None:
        """Lose all presence data. Only `RedisBackend` uses `how`."""

    @abstractmethod
    def lose_presence(self) -> None:
        """Lose all presence data, but no sessions."""

    @abstractmethod
    def kill(self) -> None:
        """Stop the store as if it had crashed."""

    @abstractmethod
    def start(self) -> None:
        """Start the store again."""

    @property
    def alive(self) -> bool:
        """Whether the store is running."""
        return True


class RedisBackend(PresenceBackend):
    """A Redis server, and an SQLite file for everything that is not in Redis."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start Redis, and create the tables."""
        with RedisServer(self.folder / "redis") as self.redis, super().running():
            self.settings = {"REDIS_URL": self.redis.url}
            yield

    def lose(self, how: str = "") -> None:
        """Call the method `how` of the Redis server: flushall, restart or, by default, restart_empty."""
        getattr(self.redis, how or "restart_empty")()

    def lose_presence(self) -> None:
        """Delete the hash with the incarnation of each stream. Without this hash, members count as lost."""
        for key in self.redis.cli("KEYS", "*:presence"):
            self.redis.cli("DEL", key)

    def kill(self) -> None:
        """Kill Redis."""
        self.redis.kill()

    def start(self) -> None:
        """Start Redis again."""
        self.redis.start()

    @property
    def alive(self) -> bool:
        """Whether Redis is running."""
        return self.redis.alive


class ClusterBackend(PresenceBackend):
    """A Redis Cluster, and an SQLite file for everything that is not in Redis. Its faults are tested elsewhere."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the cluster, and create the tables."""
        with RedisCluster(self.folder / "cluster") as cluster, super().running():
            self.settings = {"REDIS_URL": cluster.url}
            yield

    def lose(self, how: str = "") -> None:
        """Fail, because a cluster cannot be made to lose its data."""
        raise NotImplementedError

    lose_presence = kill = start = lose


class SqliteBackend(PresenceBackend):
    """An SQLite file. It cannot be stopped."""

    def lose(self, how: str = "") -> None:
        """Empty the tables, as if an old copy had replaced the file."""
        connection = sqlite3.connect(self.database, timeout=30, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        for table in TABLES:
            connection.execute(f"DELETE FROM {table}")  # noqa: S608
        connection.execute("COMMIT")
        connection.close()

    def lose_presence(self) -> None:
        """Empty the tables."""
        self.lose()

    def kill(self) -> None:
        """Fail, because an SQLite file has no server that could be stopped."""
        raise NotImplementedError

    start = kill


class PostgresBackend(PresenceBackend):
    """A PostgreSQL server. A crash empties the tables of presence, because these tables are unlogged."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start PostgreSQL, and create the tables."""
        binaries = find_postgres()
        assert binaries is not None
        self.postgres = PostgresServer(binaries)
        self.alive_ = True
        try:
            self.postgres.initialize()
            self.postgres.start()
            self.variables = {"CABLE_TEST_POSTGRES": self.postgres.host}
            with super().running():
                self._query("CHECKPOINT")
                yield
        finally:
            self.postgres.delete()

    def lose(self, how: str = "") -> None:
        """Simulate a crash, and start PostgreSQL again. Check that its tables of presence are unlogged."""
        self.kill()
        self.start()
        for table in TABLES:
            assert self._query(f"SELECT relpersistence FROM pg_class WHERE relname = '{table}'") == [("u",)]  # noqa: S608

    def lose_presence(self) -> None:
        """Empty the tables."""
        self._query(f"TRUNCATE {', '.join(TABLES)}")

    def kill(self) -> None:
        """Stop PostgreSQL as if it had crashed."""
        self.postgres.stop("immediate")
        self.alive_ = False

    def start(self) -> None:
        """Start PostgreSQL again."""
        self.postgres.start()
        self.alive_ = True

    @property
    def alive(self) -> bool:
        """Whether PostgreSQL is running."""
        return self.alive_

    def _query(self, sql: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host=self.postgres.host, user="postgres", dbname="postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []


BACKENDS: Mapping[str, type[PresenceBackend]] = {
    "redis": RedisBackend,
    "cluster": ClusterBackend,
    "sqlite": SqliteBackend,
    "postgres": PostgresBackend,
}
