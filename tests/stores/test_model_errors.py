"""Database errors of the model store: locks, conflicts and broken connections."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite

from reliable_cable import models
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError
from reliable_cable.stores.database import database
from reliable_cable.stores.sessions.model import ModelSessionStore
from reliable_cable.stores.streams.base import Advanced, Message, StreamEvent
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_numbering import Numbering
from tests.stores.conftest import MODEL_STORES, POSTGRES, SQLITE, with_own_connection
from tests.stores.test_streams import append, kept, on_commit

model_stores = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
postgres_only = pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
sqlite_only = pytest.mark.parametrize("alias", [SQLITE], indirect=True)

#: A pattern of the remedy in the error message, if the caller's own transaction holds the lock that the call needs.
REMEDY = r"wait for its commit \(leave out immediate=True and using, or make the call afterwards\)"


def sqlite_busy() -> sqlite3.Error:
    """Return SQLite's error when another connection holds the lock."""
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


def postgres_error(code: str) -> psycopg.Error:
    """Return the exception of psycopg for an SQLSTATE."""
    return psycopg.errors.lookup(code)()


@pytest.fixture
def short_timeout(alias: str) -> Iterator[None]:
    """Make new connections wait for a lock for 50 ms only."""
    params = SQLite.get_connection_params
    connections[alias].close()
    with mock.patch.object(SQLite, "get_connection_params", lambda self: {**params(self), "timeout": 0.05}):
        yield
    connections[alias].close()


@contextmanager
def lock_of_another(alias: str) -> Iterator[threading.Event]:
    """Hold the write lock in another thread until the block ends, or until the yielded event is set."""
    locked, release = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(using=alias):
            locked.set()
            release.wait(10)

    holder = threading.Thread(target=with_own_connection(hold))
    holder.start()
    try:
        assert locked.wait(10)
        yield release
    finally:
        release.set()
        holder.join()


@sqlite_only
class TestLockedSQLite:
    def test_an_append_waits_for_the_lock(self, store: ModelStreamStore, alias: str) -> None:
        with lock_of_another(alias) as release:
            threading.Timer(0.1, release.set).start()
            assert append(store, "1") == [1]

    @pytest.mark.usefixtures("short_timeout")
    def test_an_append_waits_for_the_lock_longer_than_the_databases_timeout(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        with lock_of_another(alias) as release:
            threading.Timer(0.5, release.set).start()
            assert append(store, "1") == [1]

    @pytest.mark.usefixtures("short_timeout")
    def test_an_append_that_never_gets_the_lock_fails_and_sends_nothing(
        self, store: ModelStreamStore, alias: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "WRITE_RETRY_TIME", 0.2)
        with lock_of_another(alias):
            for call in (lambda: append(store, "1"), lambda: store.publish_transient("a", Message("1"))):
                with pytest.raises(BroadcastError, match=rf"locked.*{REMEDY}") as caught:
                    call()
                assert not isinstance(caught.value, BroadcastUncertain)
        assert append(store, "2") == [1]

    @pytest.mark.usefixtures("short_timeout")
    def test_retries_leave_no_cursors_to_the_garbage_collector(self, store: ModelStreamStore, alias: str) -> None:
        """The collector could run in the thread with the write lock, and wait for a connection that needs the lock."""
        append(store, "1")
        try:
            with lock_of_another(alias) as release:
                gc.collect()
                gc.set_debug(gc.DEBUG_SAVEALL)
                threading.Timer(0.3, release.set).start()
                assert append(store, "2") == [2]
            gc.collect()
            left = [thing for thing in gc.garbage if isinstance(thing, sqlite3.Cursor)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        assert left == []

    def test_a_caller_that_holds_the_lock_gets_an_error_at_once(self, store: ModelStreamStore, alias: str) -> None:
        with (
            transaction.atomic(using=alias),
            pytest.raises(BroadcastError, match=rf"locked by the caller's own transaction.*{REMEDY}"),
        ):
            append(store, "1")

    def test_a_forget_or_a_revocation_in_a_transaction_with_the_lock_gets_an_error_at_once(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        append(store, "1")
        sessions = ModelSessionStore(store.settings)
        for call in (lambda: store.forget("a"), store.forget_all, lambda: sessions.revoke({"user": "u:1"})):
            with (
                transaction.atomic(using=alias),
                pytest.raises(StoreError, match=rf"^Nothing was stored.*locked by the caller's own.*{REMEDY}"),
            ):
                call()
        assert kept(store) == [(1, "1")]

    @pytest.mark.usefixtures("short_timeout")
    def test_a_caller_that_holds_the_lock_in_deferred_mode_gets_an_error_after_the_timeout(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        with (
            mock.patch.object(connections[alias], "transaction_mode", None),
            transaction.atomic(using=alias),
        ):
            on_commit(store, "1")  # takes the write lock
            with pytest.raises(BroadcastError, match=rf"own transaction.*{REMEDY}"):
                append(store, "2")
        assert kept(store) == [(1, "1")]


@model_stores
class TestErrors:
    def test_an_error_before_the_commit_stores_nothing(self, store: ModelStreamStore) -> None:
        append(store, "1")
        outage = mock.Mock(side_effect=OperationalError("disk full"))
        with (
            mock.patch.object(Numbering, "insert", outage),
            pytest.raises(BroadcastError, match="disk full") as caught,
        ):
            append(store, "2", key="k")
        assert not isinstance(caught.value, BroadcastUncertain)
        assert append(store, "3") == [2]

    def test_a_commit_without_a_response_is_uncertain_and_can_be_repeated(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        connection = connections[alias]
        commit = connection.commit

        def commit_and_lose_the_answer() -> None:
            commit()
            raise OperationalError("server closed the connection unexpectedly")

        append(store, "0")
        events: list[StreamEvent] = []
        with mock.patch.object(store.bus, "publish", events.extend):
            with (
                mock.patch.object(connection, "commit", commit_and_lose_the_answer),
                pytest.raises(BroadcastUncertain, match="idempotency_key"),
            ):
                append(store, "1", key="k")
            # The message may have been stored, so listeners read the stream.
            assert events == [Advanced("a")]
            # The process of the first attempt may have ended before it could announce the message.
            assert append(store, "1", key="k") == [2]
            assert events == [Advanced("a")] * 2
        assert append(store, "2") == [3]

    def test_reading_a_database_that_is_down_is_a_store_error(self, store: ModelStreamStore) -> None:
        outage = mock.Mock(side_effect=OperationalError("down"))
        with mock.patch("django.db.models.sql.compiler.SQLCompiler.execute_sql", outage):
            for call in (
                lambda: store.read("a", after=0, limit=1),
                lambda: store.position("a"),
                lambda: store.offset_since("a", 0),
                lambda: store.prune(),
            ):
                with pytest.raises(StoreError, match="down"):
                    call()

    def test_a_conflict_in_the_commit_is_retried_and_not_uncertain(self, store: ModelStreamStore, alias: str) -> None:
        connection = connections[alias]
        commit = connection.commit
        conflicts = [sqlite_busy(), postgres_error("40001")]

        def fail_to_commit() -> None:
            if conflicts:
                raise OperationalError("could not commit") from conflicts.pop()
            commit()

        append(store, "1")
        with mock.patch.object(connection, "commit", fail_to_commit):
            assert append(store, "2") == [2]
        assert [data for _, data in kept(store)] == ["1", "2"]


@postgres_only
class TestBrokenConnections:
    @pytest.fixture
    def break_connection(self, alias: str) -> Callable[[], None]:
        """Return a function that makes the server end this thread's connection."""

        def end() -> None:
            mine = connections[alias].connection.info.backend_pid
            other = connections[alias].copy()
            with other.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [mine])
            other.close()

        return end

    def test_writes_and_reads_reopen_a_broken_connection(
        self, store: ModelStreamStore, break_connection: Callable[[], None]
    ) -> None:
        append(store, "1")
        break_connection()
        assert append(store, "2") == [2]
        break_connection()
        assert [data for _, data in kept(store)] == ["1", "2"]
        break_connection()
        assert store.position("a").offset == 2

    def test_a_connection_that_breaks_inside_the_callers_transaction_is_not_reopened(
        self, store: ModelStreamStore, alias: str, break_connection: Callable[[], None]
    ) -> None:
        def broadcast_twice() -> None:
            with transaction.atomic(using=alias):
                on_commit(store, "1")
                break_connection()
                on_commit(store, "2")

        with pytest.raises(BroadcastError):
            broadcast_twice()
        assert kept(store) == []


@model_stores
def test_a_missing_table_is_named_with_its_remedy(store: ModelStreamStore, monkeypatch: pytest.MonkeyPatch) -> None:
    append(store, "1")
    monkeypatch.setattr(models.Stream._meta, "db_table", "reliable_cable_absent")
    for call, error in ((lambda: kept(store), StoreError), (lambda: append(store, "2"), BroadcastError)):
        with pytest.raises(error, match=r"reliable_cable_absent(.|\n)* Run `manage\.py migrate`\.$"):
            call()
