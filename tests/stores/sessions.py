"""The session stores under test, parametrized by their backends, and the identities of the sessions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connections
from django.test.utils import CaptureQueriesContext

from reliable_cable.conf import get_settings
from reliable_cable.stores.sessions.base import SessionRecord, SessionStore
from reliable_cable.stores.sessions.memory import MemorySessionStore
from reliable_cable.stores.sessions.model import ModelSessionStore
from reliable_cable.stores.sessions.redis import RedisSessionStore
from tests.support.redis import CLUSTER, RedisPool, RedisServer, find_binaries
from tests.support.redis_cluster import RedisCluster

from .conftest import REDIS_STORES, Clock

#: The SESSIONS_TTL of the stores, in seconds.
TTL = 300.0
#: A time, in seconds, that is shorter than `TTL`, and longer than a test takes.
MOMENT = 20.0
#: The time at which the sessions of the tests were authenticated. At the beginning of a test, `Clock` shows this time.
THEN = 1_000_000.0

ann = {"user": "auth.user:1"}
bob = {"user": "auth.user:2"}
nobody = {"user": ""}
ANN = SessionRecord(ann, THEN, {"subscriptions": [{"identifier": '{"channel":"Chat"}', "offset": 5}]})
BOB = SessionRecord(bob, THEN, {})


def large_record(number: int) -> SessionRecord:
    """Return a record with 100 long identifiers. `left_at` and the state of one subscription depend on `number`."""
    subscriptions = [{"identifier": f"{at} {'i' * 2000}", "state": {"at": at}} for at in range(100)]
    subscriptions[50]["state"] = {"text": "x" * number}
    return SessionRecord(ann, THEN, {"sids": [], "subscriptions": subscriptions, "alive": True, "left_at": number})


def statements(alias: str, call: Callable[[], object]) -> list[str]:
    """Return the SQL statements about session records that a call executes."""
    with CaptureQueriesContext(connections[alias]) as captured:
        call()
    return [query["sql"] for query in captured if "reliable_cable_session" in query["sql"]]


class RedisClock(Clock):
    """A clock that also shortens the TTLs of keys in Redis, because Redis expires them by its own clock."""

    def __init__(self, server: RedisServer | RedisCluster, prefix: str) -> None:
        super().__init__()
        self._server = server
        self._prefix = prefix

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        for key in self._server.cli("KEYS", f"{self._prefix}:*"):
            self._server.cli("PEXPIRE", key, round(self._server.cli("PTTL", key) - seconds * 1000))


#: The aliases of the databases of the model store.
ALIASES = [
    pytest.param(alias, marks=pytest.mark.postgres if alias == "postgres" else ())
    for alias in django_settings.DATABASES
]


@pytest.fixture(params=ALIASES)
def alias(request: pytest.FixtureRequest) -> str:
    alias: str = request.param
    return alias


def model_store(alias: str, clock: Clock, **settings: Any) -> ModelSessionStore:
    return ModelSessionStore(replace(get_settings(), sessions_ttl=TTL, database=alias, **settings), clock=clock)


@pytest.fixture(params=[*[alias for alias in ALIASES if alias.values == ("postgres",)], *REDIS_STORES])
def server_kind(request: pytest.FixtureRequest) -> str:
    """A backend whose server has its own clock: PostgreSQL, or the name of a Redis."""
    kind: str = request.param
    return kind


@pytest.fixture
async def store_on(
    server_kind: str, redis_pool: RedisPool, key_prefix: str
) -> AsyncIterator[Callable[[float], SessionStore]]:
    """Return a function that makes the store of a host whose clock is some seconds ahead of the server's clock."""
    made: list[RedisSessionStore] = []

    def make(ahead: float) -> SessionStore:
        store: SessionStore
        if server_kind == "postgres":
            store = ModelSessionStore(replace(get_settings(), sessions_ttl=TTL, database="postgres"))
        else:
            url = redis_pool.find(server_kind).url
            store = RedisSessionStore(replace(get_settings(), sessions_ttl=TTL, redis_url=url, key_prefix=key_prefix))
            made.append(store)
        store.clock = lambda: time.time() + ahead
        return store

    yield make
    for store in made:
        await store.client.aclose()
        store.client.close()


@pytest.fixture(params=["memory", *ALIASES, *REDIS_STORES])
def kind(request: pytest.FixtureRequest) -> str:
    """The backend of the session store: `memory`, a database alias, or the name of a Redis."""
    kind: str = request.param
    return kind


@pytest.fixture
def clock(request: pytest.FixtureRequest, key_prefix: str) -> Clock:
    kind = request.getfixturevalue("kind") if "kind" in request.fixturenames else ""
    if kind in {CLUSTER, *(binary.name for binary in find_binaries())}:
        return RedisClock(request.getfixturevalue("redis_pool").find(kind), key_prefix)
    return Clock()


@pytest.fixture
async def store(kind: str, clock: Clock, redis_pool: RedisPool, key_prefix: str) -> AsyncIterator[SessionStore]:
    if kind == "memory":
        yield MemorySessionStore(replace(get_settings(), sessions_ttl=TTL), clock=clock)
    elif isinstance(clock, RedisClock):
        settings = replace(get_settings(), sessions_ttl=TTL, redis_url=redis_pool.find(kind).url, key_prefix=key_prefix)
        store = RedisSessionStore(settings, clock=clock)
        yield store
        await store.client.aclose()
        store.client.close()
    else:
        yield model_store(kind, clock)
