"""Runs that a real Celery worker writes, with PostgreSQL and Redis, and readers with real sockets."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.celery import Worker, use_broker
from tests.support.client import Client, identify, unique
from tests.support.redis import RedisPool, find_binaries
from tests.support.run_reader import RunReader
from tests.support.server import PATIENCE, Server, ServerPool

pytestmark = [pytest.mark.postgres, pytest.mark.redis]

WORDS = [f"word{number} " for number in range(40)]
TEXT = "".join(WORDS)


@pytest.fixture(scope="module")
def served(postgres_servers: ServerPool, redis_pool: RedisPool) -> Iterator[Server]:
    """A server that can send tasks to a worker."""
    redis = redis_pool.get(find_binaries()[0].name)
    server = postgres_servers.make(
        "uvicorn",
        REDIS_URL=redis.url,
        KEY_PREFIX=unique("runs-"),
        RUN_LEASE=3,
        RUN_PERMISSIONS="tests.integration.project.runs.Everyone",
    )
    use_broker(redis, server)
    with server:
        yield server


async def start(served: Server, pause: float) -> tuple[str, str]:
    """Start a run. Return its id and the identifier for its channel."""
    run = await served.call("start_run", WORDS, pause)
    return run, identify("RunChannel", id=run)


async def test_readers_that_come_and_go_get_the_whole_answer(served: Server, worker: Worker) -> None:
    run, identifier = await start(served, 0.05)
    early, late = RunReader(), RunReader()
    async with Client(served.url) as client:
        await client.send("subscribe", identifier, history={"since": 1})
        await early.read(client.next, lambda reader: len(reader.text) > len(TEXT) / 4)
    async with Client(served.url) as client:
        await client.send("subscribe", identifier, history={"since": 1})
        await late.read(client.next, lambda reader: reader.ended, PATIENCE)
    assert (late.status, late.text) == ("completed", TEXT)
    assert late.names[0] == "snapshot"
    async with Client(served.url) as client:
        await client.send("subscribe", identifier, history={"since": 1})
        await early.read(client.next, lambda reader: reader.ended)
    assert early.text == (await served.call("read_run", run))["text"] == TEXT


async def test_a_run_whose_worker_is_killed_fails_and_can_be_retried(served: Server, worker: Worker) -> None:
    run, identifier = await start(served, 0.2)
    reader = RunReader()
    async with Client(served.url) as client:
        await client.send("subscribe", identifier, history={"since": 1})
        await reader.read(client.next, lambda reader: reader.parts and len(reader.text) > len(TEXT) / 8, PATIENCE)
        os.kill(reader.parts[0]["data"], signal.SIGKILL)
        await reader.read(client.next, lambda reader: reader.ended, PATIENCE)
        failed = await served.call("read_run", run)
        assert (reader.status, failed["status"]) == ("failed", "failed")
        assert reader.text == failed["text"]
        await served.call("retry_run", run)
        await reader.read(client.next, lambda reader: reader.attempt == 2 and reader.ended, PATIENCE)
    assert (reader.status, reader.text) == ("completed", TEXT)
    assert worker.dead_children


async def test_a_reader_stops_a_worker(served: Server, worker: Worker) -> None:
    run, identifier = await start(served, 0.1)
    reader = RunReader()
    async with Client(served.url) as client:
        await client.send("subscribe", identifier, history={"since": 1})
        await reader.read(client.next, lambda reader: reader.text, PATIENCE)
        await client.perform(identifier, "stop")
        await reader.read(client.next, lambda reader: reader.ended, PATIENCE)
    stopped = await served.call("read_run", run)
    assert (reader.status, stopped["status"]) == ("stopped", "stopped")
    assert reader.text == stopped["text"] != TEXT
