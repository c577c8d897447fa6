"""The stores under test, parametrized by their backends, and a clock that tests advance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.db import connections

from reliable_cable.concurrency.threads import busy_threads, end_threads
from reliable_cable.conf import CableSettings, get_settings
from reliable_cable.hub.presence import PresenceService
from reliable_cable.stores.engine import Engine, get_engine
from reliable_cable.stores.presence.base import PresenceStore
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.presence.redis import RedisPresenceStore
from reliable_cable.stores.redis.client import LINEAGE, Call, RedisClient
from reliable_cable.stores.redis.clients import client_for
from reliable_cable.stores.streams.base import StreamStore
from reliable_cable.stores.streams.durable import DurableStreamStore
from reliable_cable.stores.streams.memory import MemoryStreamStore
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.presence import KEPT, TTL, Recorder, Rounds, ThreadedPresenceStore, listen
from tests.support.redis import CLUSTER, RedisPool, find_binaries

MEMORY = pytest.param("memory", id="memory")
SQLITE = pytest.param("default", id="sqlite", marks=pytest.mark.django_db(transaction=True))
POSTGRES = pytest.param(
    "postgres",
    id="postgres",
    marks=[pytest.mark.postgres, pytest.mark.django_db(transaction=True, databases=["postgres"])],
)
#: Redis Cluster, on which `-m other_combination` runs the tests of stores.
REDIS_CLUSTER = pytest.param(CLUSTER, id=CLUSTER, marks=[pytest.mark.redis, pytest.mark.other_combination])
SINGLE_REDIS_STORES = [pytest.param(binary.name, id=binary.name, marks=pytest.mark.redis) for binary in find_binaries()]
REDIS_STORES = [*SINGLE_REDIS_STORES, REDIS_CLUSTER]
DURABLE = pytest.param("durable", id="durable", marks=[pytest.mark.redis, pytest.mark.django_db(transaction=True)])
#: `DURABLE` on a Redis Cluster.
DURABLE_ON_CLUSTER = pytest.param(
    "durable-cluster", id="durable-cluster", marks=[*DURABLE.marks, pytest.mark.other_combination]
)
#: Values for `pytest.mark.parametrize("alias", …, indirect=True)`, so that a test runs with each store.
EVERY_STORE = [MEMORY, SQLITE, POSTGRES, *REDIS_STORES, DURABLE]
MODEL_STORES = [SQLITE, POSTGRES]
#: The stores that have a presence store of their own.
PRESENCE_STORES = [MEMORY, *MODEL_STORES, *REDIS_STORES]

MakeStore = Callable[..., Any]


class Clock:
    """A clock that only tests advance, in seconds since 1970."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def single_client(store: RedisStreamStore | RedisPresenceStore) -> RedisClient:
    """Return the client of a store on a single Redis."""
    client = store.client
    assert isinstance(client, RedisClient)
    return client


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def alias(request: pytest.FixtureRequest) -> str:
    """The backend: a database alias, `memory`, the name of a Redis, `cluster`, `durable` or `durable-cluster`."""
    alias: str = request.param
    return alias


@pytest.fixture
def redis_settings(alias: str, redis_pool: RedisPool, key_prefix: str) -> dict[str, Any]:
    """The URL and the key prefix of a Redis, as settings of a store; empty if the backend has no Redis."""
    if alias in ("memory", *connections.settings):
        return {}
    names = {"durable": find_binaries()[0].name, "durable-cluster": CLUSTER}
    server = redis_pool.find(names.get(alias, alias))
    values: dict[str, Any] = {"redis_url": server.url, "key_prefix": key_prefix}
    client = client_for(CableSettings(**values))
    # Redis records when its lineage (its data set) began, by its own clock. The tests have another clock.
    records = [client.names.lineage(partition) for partition in client.names.partitions()]
    client.run(*(Call("tails", [], [LINEAGE], beside=record) for record in records), idempotent=True)
    client.run(*(Call("HSET", [record], ["began", 0]) for record in records), idempotent=True)
    client.close()
    return values


@pytest.fixture
def made_stores() -> list[StreamStore]:
    """A list to which `make_store` adds the stores that it creates."""
    return []


@pytest.fixture(autouse=True)
async def released(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """After the test, call `aclose` of its stores on the event loop of the test."""
    made = request.getfixturevalue("made_stores") if "made_stores" in request.fixturenames else []
    yield
    for store in made:
        await store.aclose()


@pytest.fixture
def make_store(
    alias: str, clock: Clock, redis_settings: dict[str, Any], made_stores: list[StreamStore]
) -> Iterator[MakeStore]:
    """Return a function that makes stores with a common backend. They act like the stores of separate processes."""

    def make(**settings: Any) -> StreamStore:
        settings.setdefault("poll_interval", 0.01)
        store: StreamStore
        if alias == "memory":
            store = MemoryStreamStore(CableSettings(**settings), clock=clock)
        elif alias.startswith("durable"):
            patterns = {**settings.pop("streams", {}), "*": {}}
            streams = {
                name: {"durable": options.get("history_size") != 0, **options} for name, options in patterns.items()
            }
            store = DurableStreamStore(CableSettings(streams=streams, **redis_settings, **settings), clock=clock)
        elif redis_settings:
            store = RedisStreamStore(CableSettings(**redis_settings, **settings), clock=clock)
        else:
            store = ModelStreamStore(CableSettings(database=alias, **settings), clock=clock)
        made_stores.append(store)
        return store

    yield make
    for store in made_stores:
        store.close()
    if alias in ("durable", "durable-cluster", *connections.settings):
        finish_store_threads()


@pytest.fixture
def presence_store(
    alias: str, redis_settings: dict[str, Any], clock: Clock, made_stores: list[Any]
) -> Iterator[PresenceStore]:
    """A presence store in memory, in a database or in Redis."""
    if alias in connections.settings:
        settings = CableSettings(presence_ttl=TTL, sessions_ttl=KEPT, database=alias, poll_interval=0.01)
        model = ThreadedPresenceStore(settings, clock=clock)
        yield model
        model.close()
        finish_store_threads()
        return
    settings = CableSettings(presence_ttl=TTL, sessions_ttl=KEPT, **redis_settings)
    if not redis_settings:
        yield MemoryPresenceStore(settings, clock=clock)
        return
    store = RedisPresenceStore(settings, clock=clock)
    made_stores.append(store)
    yield store
    store.close()


@pytest.fixture
def memory_presence(clock: Clock) -> PresenceStore:
    """A presence store in memory, with the settings of the test and the PRESENCE_TTL `TTL`."""
    return MemoryPresenceStore(replace(get_settings(), presence_ttl=TTL), clock=clock)


@pytest.fixture
def rounds() -> Rounds:
    """The rounds of `service`. The test starts each of them."""
    return Rounds()


@pytest.fixture
async def service(memory_presence: PresenceStore, rounds: Rounds) -> AsyncIterator[PresenceService]:
    """A presence service on the store in memory."""
    service = PresenceService(memory_presence, sleep=rounds.sleep)
    yield service
    await service.stop()


@pytest.fixture
async def recorder(presence_store: PresenceStore) -> AsyncIterator[Recorder]:
    """A recorder of the events of the streams `s`, `t` and `other` of the presence store."""
    recorder = await listen(presence_store, "s", "t", "other")
    yield recorder
    await recorder.listener.close()


@pytest.fixture
def engine(alias: str, redis_settings: dict[str, Any], settings: Any, made_stores: list[Any]) -> Iterator[Engine]:
    """The stores of the backend `alias`, configured in the settings. `durable` makes all streams durable."""
    values: dict[str, Any] = {key.upper(): value for key, value in redis_settings.items()}
    if alias == "durable":
        values["STREAMS"] = {"*": {"durable": True}}
    elif not redis_settings:
        values |= {"ENGINE": "memory"} if alias == "memory" else {"ENGINE": "database", "DATABASE": alias}
    settings.RELIABLE_CABLE = values
    made = get_engine()
    made_stores.append(made.streams)
    yield made
    made.streams.close()
    if made.streams.uses_database:
        finish_store_threads()


def finish_store_threads() -> None:
    """End the store threads, so that none of them trims a stream while the tables are emptied."""
    deadline = time.monotonic() + 30
    while not end_threads(30):  # the last job of a thread may start another thread
        assert time.monotonic() < deadline, busy_threads()


@pytest.fixture
def store(make_store: MakeStore) -> Any:
    return make_store()


def wait_until(condition: Callable[[], object], timeout: float = 30) -> None:
    """Wait until other threads have made a condition true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.005)


async def until(condition: Callable[[], object], timeout: float = 30) -> None:  # noqa: ASYNC109 - says what failed
    """Wait until other tasks and threads have made a condition true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await asyncio.sleep(0.005)


def with_own_connection(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function to run in a thread. It calls `call`, and then closes the thread's database connections."""

    def run() -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    return run
