"""The model store and transactions: what waits for a commit, what does not, and what happens when it fails."""

from __future__ import annotations

import gc
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLite
from django.test import TestCase

from reliable_cable import database, models
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError
from reliable_cable.streams.base import YOUNG_TIME, Message
from reliable_cable.streams.model import ModelStreamStore
from reliable_cable.streams.model_numbering import Numbering
from tests.stores.conftest import MODEL_STORES, POSTGRES, SQLITE, Clock, MakeStore, until, with_own_connection
from tests.stores.test_streams import append, kept

model_stores = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
postgres_only = pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
sqlite_only = pytest.mark.parametrize("alias", [SQLITE], indirect=True)


def on_commit(store: ModelStreamStore, *data: str, stream: str = "a", key: str = "") -> None:
    store.append_on_commit([(stream, Message(d, idempotency_key=key)) for d in data], using=store.settings.database)


def sqlite_busy() -> sqlite3.Error:
    """Return the error of SQLite that another connection has the lock."""
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


def postgres_error(code: str) -> psycopg.Error:
    """Return the error of PostgreSQL with this code."""
    return psycopg.errors.lookup(code)()


def waiting(alias: str) -> int:
    return models.OutboxEntry.objects.using(alias).count()


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the process die between a commit and its hook."""

    def arrange() -> None:
        monkeypatch.setattr(ModelStreamStore, "_number_after_commit", lambda self, names: None)

    return arrange


@model_stores
class TestAfterTheCommit:
    def test_messages_wait_for_it_and_are_numbered_in_order(self, store: ModelStreamStore, alias: str) -> None:
        with transaction.atomic(using=alias):
            on_commit(store, "1", "2")
            on_commit(store, "3")
            on_commit(store, "1", stream="b")
            assert kept(store) == []
        assert kept(store) == [(1, "1"), (2, "2"), (3, "3")]
        assert kept(store, "b") == [(1, "1")]
        assert waiting(alias) == 0

    def test_rolled_back_they_never_happened_and_used_no_offset(self, store: ModelStreamStore, alias: str) -> None:
        with transaction.atomic(using=alias):
            on_commit(store, "1")
            transaction.set_rollback(True, using=alias)
        assert append(store, "2") == [1]
        assert kept(store) == [(1, "2")]

    def test_a_savepoints_rollback_takes_its_own_with_it(self, store: ModelStreamStore, alias: str) -> None:
        with transaction.atomic(using=alias):
            on_commit(store, "1")
            with transaction.atomic(using=alias):
                on_commit(store, "2")
                transaction.set_rollback(True, using=alias)
            with transaction.atomic(using=alias):
                on_commit(store, "3")
        assert kept(store) == [(1, "1"), (2, "3")]

    def test_without_a_transaction_they_are_stored_at_once(self, store: ModelStreamStore) -> None:
        on_commit(store, "1")
        assert kept(store) == [(1, "1")]

    def test_a_repeated_key_is_stored_once(self, store: ModelStreamStore, alias: str) -> None:
        append(store, "1", key="k")
        with transaction.atomic(using=alias):
            on_commit(store, "2", "3", key="k")
            on_commit(store, "4", "5", key="new")
        assert kept(store) == [(1, "1"), (2, "4")]
        assert waiting(alias) == 0

    def test_more_than_one_batch_is_numbered_too(self, store: ModelStreamStore, alias: str) -> None:
        with mock.patch("reliable_cable.streams.model.BATCH", 3), transaction.atomic(using=alias):
            on_commit(store, *"12345678")
        assert [data for _, data in kept(store)] == list("12345678")

    def test_what_is_not_kept_waits_too(self, make_store: MakeStore, alias: str) -> None:
        store = make_store(history_size=0)
        with transaction.atomic(using=alias):
            on_commit(store, "1")
            assert models.TransientEntry.objects.using(alias).count() == 0
        assert models.TransientEntry.objects.using(alias).get().data == "1"


@model_stores
class TestCrashes:
    def test_the_next_append_numbers_what_a_crash_left_and_comes_after_it(
        self, store: ModelStreamStore, alias: str, crash: Callable[[], None]
    ) -> None:
        crash()
        with transaction.atomic(using=alias):
            on_commit(store, "1", "2")
        assert kept(store) == []
        assert append(store, "3") == [3]
        assert [data for _, data in kept(store)] == list("123")

    def test_however_much_it_left(self, store: ModelStreamStore, alias: str, crash: Callable[[], None]) -> None:
        crash()
        with mock.patch("reliable_cable.streams.model.BATCH", 3):
            with transaction.atomic(using=alias):
                on_commit(store, *"1234567")
            assert append(store, "8") == [8]
        assert [data for _, data in kept(store)] == list("12345678")

    async def test_so_does_any_servers_poll(self, make_store: MakeStore, alias: str, crash: Callable[[], None]) -> None:
        here, there = make_store(), make_store()
        heard: list[Any] = []
        listener = here.listen(heard.append)
        await listener.subscribe("a")
        crash()

        def broadcast() -> None:
            with transaction.atomic(using=alias):
                on_commit(there, "1", "2")

        await there._run(broadcast)
        await until(lambda: len(heard) == 2)
        await listener.close()
        assert [(event.offset, event.data) for event in heard] == [(1, "1"), (2, "2")]

    def test_a_hook_that_fails_is_logged_and_does_not_fail_the_request(
        self, store: ModelStreamStore, alias: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        outage = mock.Mock(side_effect=OperationalError("gone away"))
        with mock.patch.object(ModelStreamStore, "_write", outage), transaction.atomic(using=alias):
            on_commit(store, "1")
        assert "not numbered yet: a" in caplog.text
        store.number_outbox()
        assert kept(store) == [(1, "1")]

    def test_one_stream_that_cannot_be_numbered_holds_up_no_other(
        self, store: ModelStreamStore, alias: str, crash: Callable[[], None]
    ) -> None:
        crash()
        with transaction.atomic(using=alias):
            on_commit(store, "1", stream="a")
            on_commit(store, "1", stream="b")
        write = ModelStreamStore._write

        def fail_for_a(self: ModelStreamStore, names: list[str], items: Any) -> Any:
            if names == ["a"]:
                raise OperationalError("a is cursed")
            return write(self, names, items)

        with (
            mock.patch.object(ModelStreamStore, "_write", fail_for_a),
            pytest.raises(BroadcastError, match="a is cursed"),
        ):
            store.number_outbox()
        assert kept(store, "b") == [(1, "1")]
        assert waiting(alias) == 1

    def test_forgetting_a_stream_forgets_what_waits(
        self, store: ModelStreamStore, alias: str, crash: Callable[[], None]
    ) -> None:
        crash()
        with transaction.atomic(using=alias):
            on_commit(store, "1")
        store.forget("a")
        assert append(store, "2") == [1]


@postgres_only
class TestImmediately:
    def test_it_is_stored_outside_of_the_open_transaction(self, store: ModelStreamStore, alias: str) -> None:
        with transaction.atomic(using=alias):
            on_commit(store, "never")
            assert append(store, "1") == [1]
            store.publish_transient("a", Message("2"))
            transaction.set_rollback(True, using=alias)
        assert kept(store) == [(1, "1")]
        assert models.TransientEntry.objects.using(alias).count() == 1

    def test_transactions_that_broadcast_lock_nothing(self, store: ModelStreamStore, alias: str) -> None:
        append(store, "1")
        with transaction.atomic(using=alias):
            on_commit(store, "3")
            other = threading.Thread(target=with_own_connection(lambda: append(store, "2")))
            other.start()
            other.join(10)
            assert not other.is_alive()
        assert [data for _, data in kept(store)] == list("123")

    def test_transactions_that_commit_in_another_order_lose_nothing(self, store: ModelStreamStore, alias: str) -> None:
        inserted, go_on = threading.Event(), threading.Event()

        def slow_transaction() -> None:
            with transaction.atomic(using=alias):
                on_commit(store, "first in, last committed")
                inserted.set()
                assert go_on.wait(10)

        slow = threading.Thread(target=with_own_connection(slow_transaction))
        slow.start()
        assert inserted.wait(10)
        with transaction.atomic(using=alias):
            on_commit(store, "second")
        assert append(store, "third") == [2]
        go_on.set()
        slow.join()
        assert [data for _, data in kept(store)] == ["second", "third", "first in, last committed"]


@pytest.fixture
def short_timeout(alias: str) -> Iterator[None]:
    """Let new connections wait for 50 ms only."""
    params = SQLite.get_connection_params
    connections[alias].close()
    with mock.patch.object(SQLite, "get_connection_params", lambda self: {**params(self), "timeout": 0.05}):
        yield
    connections[alias].close()


@sqlite_only
class TestLockedSQLite:
    def test_it_waits_for_the_lock(self, store: ModelStreamStore, alias: str) -> None:
        locked, release = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic(using=alias):
                locked.set()
                release.wait(10)

        holder = threading.Thread(target=with_own_connection(hold))
        holder.start()
        assert locked.wait(10)
        threading.Timer(0.1, release.set).start()
        assert append(store, "1") == [1]
        holder.join()

    @pytest.mark.usefixtures("short_timeout")
    def test_a_lock_that_outlasts_the_databases_timeout_is_waited_for_too(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        locked, release = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic(using=alias):
                locked.set()
                release.wait(10)

        holder = threading.Thread(target=with_own_connection(hold))
        holder.start()
        assert locked.wait(10)
        threading.Timer(0.5, release.set).start()
        assert append(store, "1") == [1]
        holder.join()

    @pytest.mark.usefixtures("short_timeout")
    def test_then_there_is_an_error_and_nothing_was_sent(
        self, store: ModelStreamStore, alias: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(database, "WRITE_PATIENCE", 0.2)
        locked, release = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic(using=alias):
                locked.set()
                release.wait(10)

        holder = threading.Thread(target=with_own_connection(hold))
        holder.start()
        try:
            assert locked.wait(10)
            for call in (lambda: append(store, "1"), lambda: store.publish_transient("a", Message("1"))):
                with pytest.raises(BroadcastError, match=r"locked.*wait for the commit") as caught:
                    call()
                assert not isinstance(caught.value, BroadcastUncertain)
        finally:
            release.set()
            holder.join()
        assert append(store, "2") == [1]

    @pytest.mark.usefixtures("short_timeout")
    def test_what_was_repeated_leaves_no_cursors_to_the_garbage_collector(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        """It could run in the thread with the write lock, and wait there for a connection that waits for the lock."""
        append(store, "1")
        locked, release = threading.Event(), threading.Event()

        def hold() -> None:
            with transaction.atomic(using=alias):
                locked.set()
                release.wait(10)

        holder = threading.Thread(target=with_own_connection(hold))
        holder.start()
        assert locked.wait(10)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            threading.Timer(0.3, release.set).start()
            assert append(store, "2") == [2]
            holder.join()
            gc.collect()
            left = [thing for thing in gc.garbage if isinstance(thing, sqlite3.Cursor)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        assert left == []

    def test_a_caller_that_holds_the_lock_itself_is_told_at_once(self, store: ModelStreamStore, alias: str) -> None:
        with (
            transaction.atomic(using=alias),
            pytest.raises(BroadcastError, match=r"locked by the caller's own transaction.*Leave out immediate=True"),
        ):
            append(store, "1")

    @pytest.mark.usefixtures("short_timeout")
    def test_without_immediate_mode_it_is_told_after_the_timeout(self, store: ModelStreamStore, alias: str) -> None:
        with (
            mock.patch.object(connections[alias], "transaction_mode", None),
            transaction.atomic(using=alias),
        ):
            on_commit(store, "1")  # takes the write lock
            with pytest.raises(BroadcastError, match=r"own transaction.*immediate=True"):
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
            append(store, "2")
        assert not isinstance(caught.value, BroadcastUncertain)
        assert append(store, "3") == [2]

    def test_a_commit_without_an_answer_is_uncertain_and_can_be_repeated(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        connection = connections[alias]
        commit = connection.commit

        def commit_and_lose_the_answer() -> None:
            commit()
            raise OperationalError("server closed the connection unexpectedly")

        append(store, "0")
        with (
            mock.patch.object(connection, "commit", commit_and_lose_the_answer),
            pytest.raises(BroadcastUncertain, match="idempotency_key"),
        ):
            append(store, "1", key="k")
        assert append(store, "1", key="k") == [2]
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

    def test_a_conflict_at_the_commit_is_repeated_and_not_uncertain(self, store: ModelStreamStore, alias: str) -> None:
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
        """End the server's side of this thread's connection."""

        def end() -> None:
            mine = connections[alias].connection.info.backend_pid
            other = connections[alias].copy()
            with other.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [mine])
            other.close()

        return end

    def test_writes_and_reads_open_it_again(
        self, store: ModelStreamStore, break_connection: Callable[[], None]
    ) -> None:
        append(store, "1")
        break_connection()
        assert append(store, "2") == [2]
        break_connection()
        assert [data for _, data in kept(store)] == ["1", "2"]
        break_connection()
        assert store.position("a").offset == 2

    def test_one_that_breaks_inside_the_callers_transaction_is_not_opened_again(
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


class TestInATestCase(TestCase):
    """With no handler threads, everything happens in the transaction of the test, which sees it."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.store = ModelStreamStore(CableSettings(handler_threads=0, history_size=2), clock=self.clock)

    def test_appending(self) -> None:
        assert append(self.store, "1") == [1]
        assert append(self.store, *(str(n) for n in range(190))) == list(range(2, 192))
        self.clock.advance(YOUNG_TIME)
        assert append(self.store, "192") == [192]
        assert models.StreamEntry.objects.count() == 2

    def test_on_commit_callbacks(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            on_commit(self.store, "1")
            assert kept(self.store) == []
        assert kept(self.store) == [(1, "1")]

    def test_log_is_quiet(self) -> None:
        with self.assertNoLogs("reliable_cable", logging.WARNING):
            append(self.store, "1")
            self.store.publish_transient("a", Message("2"))
            self.store.prune()
            self.store.forget("a")
