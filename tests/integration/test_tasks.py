"""Tests of broadcasts in tasks of Celery and of Django, whose workers are other processes than the server."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import django
import pytest

from tests.support.celery import Worker, use_broker
from tests.support.client import Client, identify, unique
from tests.support.redis import RedisPool, RedisServer, find_binaries
from tests.support.server import PATIENCE, ROOT, Kind, Server, ServerPool

#: Functions that return the settings of an engine. Their argument is a Redis that all processes can use.
ENGINES: Mapping[str, Callable[[RedisServer], dict[str, Any]]] = {
    "embedded": lambda redis: {},
    "redis": lambda redis: {"REDIS_URL": redis.url, "KEY_PREFIX": unique("tasks-")},
}

celery = pytest.mark.redis  # Celery uses a Redis server as its broker


@pytest.fixture(scope="module")
def broker(redis_pool: RedisPool) -> RedisServer:
    """The Redis that is the broker of the tasks."""
    return redis_pool.get(find_binaries()[0].name)


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest, servers: ServerPool, kind: Kind, broker: RedisServer) -> Iterator[Server]:
    """A server that can send tasks to the broker."""
    server = servers.make(kind, **ENGINES[request.param](broker))
    use_broker(broker, server)
    with server:
        yield server


async def subscribed(client: Client, prefix: str = "tasks/") -> tuple[str, str]:
    """Subscribe to a new stream. Return its name and the identifier of the subscription."""
    stream = unique(prefix)
    return stream, await client.subscribe(identify("StreamChannel", streams=[stream]))


@pytest.fixture
async def client(served: Server) -> AsyncIterator[Client]:
    """A client of the server."""
    async with Client(served.url) as client:
        yield client


@celery
class TestCelery:
    async def test_a_broadcast_in_a_task_is_delivered(self, client: Client, served: Server, worker: Worker) -> None:
        stream, identifier = await subscribed(client)
        await served.call("enqueue", "announce", stream, {"text": "hi"})
        frame = await client.next(PATIENCE)
        assert (frame["identifier"], frame["message"], frame["offset"]) == (identifier, {"text": "hi"}, 1)

    async def test_a_broadcast_in_a_transaction_is_delivered_only_after_the_commit(
        self, client: Client, served: Server, worker: Worker
    ) -> None:
        stream = unique("tasks/")
        identifier = await client.subscribe(identify("StreamChannel", streams=[stream, f"{stream} done"]))
        for commit in (False, True):
            await served.call("enqueue", "announce_in_transaction", stream, {"commit": commit}, commit=commit)
        messages = await client.messages(identifier, 3, PATIENCE)
        assert sorted(messages, key=str) == [{"commit": True}, {"done": False}, {"done": True}]
        await client.nothing()
        assert (await served.call("position", stream))["offset"] == 1

    async def test_concurrent_tasks_lose_and_repeat_no_message(
        self, client: Client, served: Server, worker: Worker
    ) -> None:
        stream, _ = await subscribed(client, "large:")
        tasks, count = [f"t{number}" for number in range(6)], 40
        await asyncio.gather(*[served.call("enqueue", "count_up", stream, 1, count, task) for task in tasks])
        frames = [await client.next(PATIENCE) for _ in range(len(tasks) * count)]
        assert [frame["offset"] for frame in frames] == list(range(1, len(frames) + 1))
        for task in tasks:
            numbers = [frame["message"]["n"] for frame in frames if frame["message"]["writer"] == task]
            assert numbers == list(range(1, count + 1)), "the messages of each task must keep their order"
        assert len({frame["message"]["pid"] for frame in frames}) == 2, (
            "both processes of the worker must have run tasks"
        )
        await client.nothing()

    async def test_the_worker_may_use_the_engine_before_it_forks(self, served: Server, worker: Worker) -> None:
        assert (await served.call("position", "workers"))["offset"] == 1
        assert "Traceback" not in worker.log


DATABASE_WORKER: Mapping[str, str] = {
    "CABLE_TEST_APPS": '["django_tasks_db"]',
    "CABLE_TEST_TASKS": "django_tasks_db.DatabaseBackend",
}


def run_command(server: Server, *words: str) -> None:
    """Run a management command with the environment of a server, and wait for its end."""
    command = [sys.executable, "-m", "django", *words]
    subprocess.run(command, cwd=ROOT, env=server.environment, check=True, timeout=PATIENCE)


async def enqueue_django(server: Server, stream: str, status: str) -> None:
    """Enqueue four tasks of Django, and check the status of the first two.

    The tasks broadcast the numbers 1 to 3. One of them broadcasts in a transaction that is rolled back.
    """
    for n, task in enumerate(("announce", "aannounce"), 1):
        assert await server.call("enqueue_django", task, stream, {"n": n}) == status
    for commit in (False, True):
        await server.call("enqueue_django", "announce_in_transaction", stream, {"n": 3}, commit=commit)


@pytest.mark.skipif(django.VERSION < (6, 0), reason="Django 5.2 has no tasks")
class TestDjango:
    async def test_a_task_of_the_immediate_backend(self, server: Server) -> None:
        async with Client(server.url) as client:
            stream, identifier = await subscribed(client)
            await enqueue_django(server, stream, "SUCCESSFUL")
            assert await client.messages(identifier, 3) == [{"n": 1}, {"n": 2}, {"n": 3}]
            await client.nothing()

    async def test_a_task_in_a_worker_process(self, servers: ServerPool, kind: Kind) -> None:
        assert importlib.util.find_spec("django_tasks_db"), "a test dependency is missing"
        server = servers.make(kind)
        server.environment |= DATABASE_WORKER
        run_command(server, "migrate", "--verbosity", "0")
        with server:
            async with Client(server.url) as client:
                stream, identifier = await subscribed(client)
                await enqueue_django(server, stream, "READY")
                await client.nothing()
                await asyncio.to_thread(run_command, server, "db_worker", "--batch", "--no-startup-delay")
                assert await client.messages(identifier, 3) == [{"n": 1}, {"n": 2}, {"n": 3}]
                await client.nothing()
