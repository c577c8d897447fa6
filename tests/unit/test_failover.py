"""Pairs of servers that fail over behind one address lose exactly the data that a test wants them to lose."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis.asyncio

from tests.stores.conftest import wait_until
from tests.support.failover import PostgresPair, RedisPair
from tests.support.fixtures import REDIS
from tests.support.postgres import find_postgres
from tests.support.redis import find_binaries
from tests.support.sqlite import copy_database


@pytest.fixture(params=REDIS)
async def redis_pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RedisPair]:
    binary = next(binary for binary in find_binaries() if binary.name == request.param)
    async with RedisPair(tmp_path, binary) as pair:
        assert await pair.follows()
        yield pair


def client(pair: RedisPair) -> redis.asyncio.Redis:
    return redis.asyncio.Redis(port=pair.address.port, single_connection_client=True, decode_responses=True)


async def test_redis_fails_over_and_back_and_open_connections_stay_with_the_demoted_server(
    redis_pair: RedisPair,
) -> None:
    async with client(redis_pair) as before:
        await before.set("key", "1")
        await asyncio.to_thread(redis_pair.primary.wait_for_replicas)
        await redis_pair.move()
        with pytest.raises(redis.ReadOnlyError):
            await before.set("key", "2")
        async with client(redis_pair) as after:
            assert await after.get("key") == "1"
            await after.set("key", "2")
            assert await redis_pair.follows()
            await asyncio.to_thread(redis_pair.primary.wait_for_replicas)
            await redis_pair.move(cut=True)
        # This test does not use the cut connections again, because redis-py then raises AttributeError on Python 3.13.
        async with client(redis_pair) as last:
            await last.set("key", "3")
            assert await last.get("key") == "3"


async def test_redis_loses_its_newest_writes(redis_pair: RedisPair) -> None:
    async with client(redis_pair) as before:
        await before.set("key", "kept")
        await asyncio.to_thread(redis_pair.primary.wait_for_replicas)
        redis_pair.relay.stall()
        await before.set("key", "lost")
        await redis_pair.move(losing=0.1)
        async with client(redis_pair) as after:
            assert await after.get("key") == "kept"


@pytest.mark.postgres
async def test_postgresql_keeps_or_loses_its_newest_writes() -> None:
    binaries = find_postgres()
    assert binaries is not None
    async with PostgresPair(binaries) as pair:

        def run(query: str) -> Any:
            address = f"host=127.0.0.1 port={pair.address.port} user=postgres dbname=postgres"
            with contextlib.closing(psycopg.connect(address, autocommit=True)) as connection:
                cursor = connection.execute(query)
                return cursor.fetchall() if cursor.description else None

        await asyncio.to_thread(run, "CREATE TABLE numbers AS SELECT 1 AS number")
        assert await pair.follows()
        await pair.move()
        await asyncio.to_thread(run, "INSERT INTO numbers VALUES (2)")
        assert await pair.follows()
        await asyncio.to_thread(run, "SELECT pg_switch_wal()")
        caught_up = "SELECT replay_lsn >= pg_current_wal_lsn() FROM pg_stat_replication"
        await asyncio.to_thread(wait_until, lambda: run(caught_up) == [(True,)], 30)
        pair.relay.stall()
        await asyncio.to_thread(run, "INSERT INTO numbers VALUES (3)")
        await pair.move(losing=0.1)
        assert await asyncio.to_thread(run, "SELECT number FROM numbers ORDER BY number") == [(1,), (2,)]


def test_an_open_sqlite_file_gets_its_older_content_back(tmp_path: Path) -> None:
    live, copy = tmp_path / "live.sqlite3", tmp_path / "copy.sqlite3"
    with contextlib.closing(sqlite3.connect(live, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE numbers (number INTEGER)")
        connection.execute("INSERT INTO numbers VALUES (1)")
        copy_database(live, copy)
        connection.execute("INSERT INTO numbers VALUES (2)")
        copy_database(copy, live)
        assert connection.execute("SELECT number FROM numbers").fetchall() == [(1,)]
        connection.execute("INSERT INTO numbers VALUES (3)")
        assert connection.execute("SELECT number FROM numbers").fetchall() == [(1,), (3,)]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
