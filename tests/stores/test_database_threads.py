"""The number and lifetime of the database connections of store threads and handler threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections
from django.db.backends.signals import connection_created

from reliable_cable import Channel
from reliable_cable.concurrency import database_connections, django_thread, threads
from reliable_cable.concurrency.threads import BatchedCalls, run_handler, run_store
from reliable_cable.connection.handlers import run_calls
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_polling import Poll
from tests.stores.conftest import MODEL_STORES, POSTGRES, MakeStore, until, wait_until
from tests.stores.test_streams import append

model_stores = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
postgres_only = pytest.mark.parametrize("alias", [POSTGRES], indirect=True)


@pytest.fixture(autouse=True)
def _no_own_connection() -> None:
    """Close the connection that making the test database has left open, because these tests break all connections."""
    connections.close_all()


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """For each connection that is opened, the name of the thread that opens it."""
    found: list[str] = []

    def remember(**kwargs: Any) -> None:
        found.append(threading.current_thread().name)

    connection_created.connect(remember)
    yield found
    connection_created.disconnect(remember)


@pytest.fixture
def polls(monkeypatch: pytest.MonkeyPatch) -> list[Poll]:
    """The result of each poll."""
    found: list[Poll] = []
    poll = ModelStreamStore.poll

    def remember(self: ModelStreamStore, *args: Any) -> Poll:
        found.append(poll(self, *args))
        return found[-1]

    monkeypatch.setattr(ModelStreamStore, "poll", remember)
    return found


async def one_more(polls: list[Poll]) -> None:
    count = len(polls)
    await until(lambda: len(polls) > count + 1)


def query(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        return int(cursor.fetchone()[0])


def break_connections(alias: str) -> None:
    """Make the server end the connections of all other threads, as a restart does."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
        assert cursor.fetchone()[0] > 0, "nothing was connected"


def connected(alias: str) -> int:
    """Return the number of connections of other threads."""
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid() "
            "AND backend_type = 'client backend'"  # autovacuum has connections, too
        )
        return int(cursor.fetchone()[0])


class TestStoreThreads:
    @model_stores
    async def test_an_idle_subscriber_polls_on_one_or_two_connections(
        self, make_store: MakeStore, opened: list[str], polls: list[Poll]
    ) -> None:
        store = make_store(notify=False)
        listener = store.listen(lambda event: None)
        await listener.subscribe("a")
        await until(lambda: len(polls) > 50)
        await listener.close()
        assert 1 <= opened.count("cable-read") <= 2

    @postgres_only
    async def test_a_poller_survives_a_restart_without_an_error_in_the_log(
        self, make_store: MakeStore, alias: str, polls: list[Poll], caplog: pytest.LogCaptureFixture
    ) -> None:
        store = make_store(notify=False)
        listener = store.listen(lambda event: None)
        await listener.subscribe("a")
        for _ in range(3):
            await one_more(polls)
            await asyncio.to_thread(with_closed_connections, break_connections, alias)
            await one_more(polls)
        await listener.close()
        assert caplog.records == []

    @postgres_only
    def test_an_idle_thread_closes_its_connection(
        self, store: ModelStreamStore, alias: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threads, "_executors", {})
        monkeypatch.setattr(threads, "IDLE_TIME", 0.05)
        assert threads.submit_store(lambda: query(alias)).result(30) == 1
        wait_until(lambda: connected(alias) == 0)

    @model_stores
    async def test_a_connection_is_closed_some_time_after_its_maximum_age(
        self, store: ModelStreamStore, alias: str, opened: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threads, "STORE_THREADS", 1)
        for _ in range(3):
            assert await run_store(query, alias) == 1
        assert opened.count("cable-read") == 1
        monkeypatch.setattr(database_connections, "EXTRA_AGE", 0.0)
        assert await run_store(query, alias) == 1
        assert opened.count("cable-read") == 2

    @postgres_only
    def test_an_idle_thread_closes_its_connection_before_postgresql_gives_up_dropping_the_database(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        # All threads of earlier tests must have ended, because they would close their connections sooner than a new
        # thread does.
        assert threads.end_threads(30)
        assert threads.submit_store(lambda: query(alias)).result(30) == 1
        wait_until(lambda: connected(alias) == 0, timeout=30)

    @postgres_only
    def test_ending_the_threads_closes_their_connections(self, make_store: MakeStore, alias: str) -> None:
        store = make_store(notify=False)
        append(store, "1")
        assert threads.submit_store(lambda: query(alias)).result(30) == 1
        # PostgreSQL may still be ending connections that were closed before.
        wait_until(lambda: connected(alias) == 1)
        assert threads.end_threads(30)
        wait_until(lambda: connected(alias) == 0)

    @postgres_only
    async def test_a_connection_that_was_idle_is_checked_before_it_is_used(
        self, store: ModelStreamStore, alias: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database_connections, "CHECK_AFTER", 0.0)
        assert await run_store(query, alias) == 1
        await asyncio.to_thread(with_closed_connections, break_connections, alias)
        assert await run_store(query, alias) == 1


@postgres_only
class TestHandlerThreads:
    """With `CONN_MAX_AGE`, no handler gets a connection that broke in a restart of the database."""

    @pytest.fixture(autouse=True)
    def persistent(self, store: ModelStreamStore, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(connections.settings[alias], "CONN_MAX_AGE", 60)

    async def test_sync_handlers(self, alias: str) -> None:
        everyone = threading.Barrier(8)

        def handler() -> int:
            everyone.wait(30)
            return query(alias)

        deadline = time.monotonic() + 60
        for _ in range(3):
            assert await asyncio.gather(*[run_handler(handler) for _ in range(8)]) == [1] * 8
            # PostgreSQL may still be ending connections that were closed before.
            while await asyncio.to_thread(with_closed_connections, connected, alias) != 8:
                assert time.monotonic() < deadline
            await asyncio.to_thread(with_closed_connections, break_connections, alias)

    async def test_async_handlers(self, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for _ in range(3):
            monkeypatch.setattr(django_thread, "_refreshed", 0.0)
            django_thread.refresh_connections()  # as is done before each handler
            assert await sync_to_async(query)(alias) == 1
            await asyncio.to_thread(with_closed_connections, break_connections, alias)
        await sync_to_async(connections.close_all)()


@postgres_only
class TestAConnectionThatBreaksWhileItIsSetUp:
    """The database stops after it has accepted a connection. Django keeps this connection, and sends no signal."""

    @pytest.fixture(autouse=True)
    def stopping(self, store: ModelStreamStore, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Break the next connection of a thread without connections."""
        assert threads.end_threads(30)
        wrapper = type(connections[alias])
        set_up = wrapper.init_connection_state

        def break_one(self: Any) -> None:
            monkeypatch.setattr(wrapper, "init_connection_state", set_up)
            self.connection.close()
            set_up(self)

        monkeypatch.setattr(wrapper, "init_connection_state", break_one)

    async def test_the_next_sync_handler_gets_another_one(self, alias: str) -> None:
        with pytest.raises(OperationalError):
            await run_handler(query, alias)
        assert await run_handler(query, alias) == 1

    async def test_a_sync_handler_gets_another_one_later_if_the_error_was_caught(
        self, alias: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def handler() -> int | None:
            try:
                return query(alias)
            except OperationalError:
                return None

        monkeypatch.setattr(database_connections, "LOOK_INTERVAL", 0.0)
        monkeypatch.setattr(threads, "_executors", {})
        assert [await run_handler(handler) for _ in range(2)] == [None, 1]

    async def test_async_handlers_get_another_one_later(self, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
        await sync_to_async(connections.close_all)()
        monkeypatch.setattr(database_connections, "connected_threads", set())
        monkeypatch.setattr(database_connections, "LOOK_INTERVAL", 0.0)
        monkeypatch.setattr(database_connections, "_times", database_connections._Times())
        await sync_to_async(database_connections.close_old_connections)()
        with pytest.raises(OperationalError):
            await sync_to_async(query)(alias)
        monkeypatch.setattr(django_thread, "_refreshed", 0.0)
        django_thread.refresh_connections()  # as is done before each handler
        assert await sync_to_async(query)(alias) == 1
        await sync_to_async(connections.close_all)()

    async def test_store_threads_get_another_one(self, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(threads, "STORE_THREADS", 1)
        with pytest.raises(OperationalError):
            await run_store(query, alias)
        assert await run_store(query, alias) == 1


class Room(Channel, abstract=True):
    async def subscribed(self) -> str:
        return "done"


async def test_the_query_of_a_handler_delays_no_other_async_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(django_thread, "_refreshed", 0.0)
    monkeypatch.setattr(database_connections, "connected_threads", {threading.get_ident()})
    answered = threading.Event()
    query = asyncio.create_task(sync_to_async(answered.wait)(30))
    await asyncio.sleep(0)
    try:
        assert await run_calls(nullcontext, [Room(None).subscribed]) == "done"
        assert not query.done()
    finally:
        answered.set()
        await query


def with_closed_connections(call: Callable[[str], Any], alias: str) -> Any:
    """Make a call, and then close the database connections of the current thread."""
    try:
        return call(alias)
    finally:
        connections.close_all()


async def test_batched_calls_run_in_copies_of_the_contexts_of_their_callers() -> None:
    tenant: ContextVar[str] = ContextVar("tenant")

    def read_and_change(value: str) -> str:
        before = tenant.get()
        tenant.set("changed")
        return before

    batched = BatchedCalls(read_and_change, size=10, parallel=1)

    async def call(value: str) -> tuple[str, str]:
        tenant.set(value)
        return await batched(value), tenant.get()

    assert await asyncio.gather(*(call(value) for value in "abc")) == [(value, value) for value in "abc"]
