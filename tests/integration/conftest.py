"""The fixtures of the integration tests, which run against real servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.celery import Worker
from tests.support.fixtures import beside, kind, postgres_host, postgres_servers, server, servers, strict
from tests.support.projects import environments
from tests.support.server import Server

__all__ = ["beside", "environments", "kind", "postgres_host", "postgres_servers", "server", "servers", "strict"]


@pytest.fixture(scope="module")
def worker(served: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A Celery worker with two processes, for the tasks of the server in the module's fixture `served`."""
    with Worker(tmp_path_factory.mktemp("worker"), served.environment) as worker:
        yield worker
