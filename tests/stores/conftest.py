"""The stream stores under test, by what keeps them, and a clock that tests turn."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections

from reliable_cable.conf import CableSettings
from reliable_cable.streams.base import StreamStore
from reliable_cable.streams.memory import MemoryStreamStore
from reliable_cable.streams.model import ModelStreamStore
from reliable_cable.threads import STORE_THREADS, submit_store

MEMORY = pytest.param("memory", id="memory")
SQLITE = pytest.param("default", id="sqlite", marks=pytest.mark.django_db(transaction=True))
POSTGRES = pytest.param(
    "postgres",
    id="postgres",
    marks=[pytest.mark.postgres, pytest.mark.django_db(transaction=True, databases=["postgres"])],
)
#: For `pytest.mark.parametrize("alias", …, indirect=True)`.
EVERY_STORE = [MEMORY, SQLITE, POSTGRES]
MODEL_STORES = [SQLITE, POSTGRES]

MakeStore = Callable[..., Any]


class Clock:
    """Seconds since 1970 that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alias(request: pytest.FixtureRequest) -> str:
    """The database of the model store, or `memory`."""
    alias: str = request.param
    return alias


@pytest.fixture
def make_store(alias: str, clock: Clock) -> Iterator[MakeStore]:
    """Make stores that share a database: to each other they are like other processes."""
    made: list[StreamStore] = []

    def make(**settings: Any) -> StreamStore:
        settings.setdefault("poll_interval", 0.01)
        store: StreamStore
        if alias == "memory":
            store = MemoryStreamStore(CableSettings(**settings), clock=clock)
        else:
            store = ModelStreamStore(CableSettings(database=alias, **settings), clock=clock)
        made.append(store)
        return store

    yield make
    for store in made:
        if isinstance(store, ModelStreamStore):
            store.close()
    if alias != "memory":
        finish_store_threads()


def finish_store_threads() -> None:
    """Wait until the store threads have trimmed what they were going to: emptying the tables waits for no one."""
    everyone = threading.Barrier(STORE_THREADS)
    for future in [submit_store(everyone.wait) for _ in range(STORE_THREADS)]:
        future.result(timeout=30)


@pytest.fixture
def store(make_store: MakeStore) -> Any:
    return make_store()


def wait_until(condition: Callable[[], object], timeout: float = 10) -> None:
    """Wait for what other threads bring about."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


async def until(condition: Callable[[], object], timeout: float = 10) -> None:  # noqa: ASYNC109 - says what failed
    """Wait for what other tasks and threads bring about."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def with_own_connection(call: Callable[[], Any]) -> Callable[[], Any]:
    """Let a thread close its connections when it is done."""

    def run() -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    return run
