"""Servers that start runs over HTTP, a Celery worker that writes the runs, and questions that tests ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.celery import Worker, use_broker
from tests.support.client import unique
from tests.support.redis import RedisPool, find_binaries
from tests.support.server import Server, ServerPool

WORDS = [f"word{number}" for number in range(40)]
TEXT = "".join(f"{word} " for word in WORDS)
QUESTION = "say " + " ".join(WORDS)
#: A question whose answer takes more than a minute, so that a test can stop it, even on a busy machine.
LONG_QUESTION = "say " + 35 * f"{' '.join(WORDS)} "
CSRF = "c" * 32


@pytest.fixture(scope="module")
def pair(postgres_servers: ServerPool, redis_pool: RedisPool) -> Iterator[dict[str, Server]]:
    """A daphne server and a uvicorn server with the same database and the same Redis server."""
    redis = redis_pool.get(find_binaries()[0].name)
    settings = {
        "REDIS_URL": redis.url,
        "KEY_PREFIX": unique("runs-"),
        "RUN_LEASE": 3,
        "RUN_CHATS": "tests.integration.project.runs.Chats",
    }
    servers = {kind: postgres_servers.make(kind, **settings) for kind in ("daphne", "uvicorn")}
    use_broker(redis, *servers.values())
    with servers["daphne"], servers["uvicorn"]:
        yield servers


@pytest.fixture(scope="module")
def worker(pair: dict[str, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A Celery worker with two processes."""
    with Worker(tmp_path_factory.mktemp("worker"), pair["uvicorn"].environment) as worker:
        yield worker
