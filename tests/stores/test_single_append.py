"""Appends of single messages to PostgreSQL, which take one statement, at the same time as other writes to a stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any
from unittest import mock

import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.test.utils import CaptureQueriesContext

from reliable_cable import models
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.database.prepared import PREPARE_AFTER
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.model import ModelStreamStore
from tests.stores.conftest import POSTGRES, MakeStore, wait_until, with_own_connection
from tests.stores.test_stream_concurrency import assert_complete, history, in_threads, isolation
from tests.stores.test_streams import append, kept
from tests.support.examples import examples

__all__ = ["isolation"]

pytestmark = [pytest.mark.parametrize("alias", [POSTGRES], indirect=True), pytest.mark.usefixtures("isolation")]


class RolledBack(Exception):
    """Raised to roll a transaction back."""


@pytest.fixture
def raw(alias: str, isolation: str) -> Iterator[psycopg.Connection]:
    """A connection to the test database that belongs to no store. The test itself commits its transactions."""
    with psycopg.connect(**connections[alias].get_connection_params()) as connection:
        yield connection


def waits_for_a_lock(alias: str) -> bool:
    """Return whether a connection is waiting for a lock."""
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with connections[alias].cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone() is not None


def test_appends_transactions_and_batches_of_many_threads_lose_nothing(make_store: MakeStore, alias: str) -> None:
    store = make_store(history_size=10_000)
    count = examples(20)

    def single(name: int, number: int) -> None:
        for stream in "ab":
            append(store, json.dumps([name, number]), stream=stream)

    def batch(name: int, number: int) -> None:
        store.append([(stream, Message(json.dumps([name, number]))) for stream in "ba"])

    def commit(items: Sequence[tuple[str, Message]], *, lost: bool) -> None:
        with suppress(RolledBack), transaction.atomic(using=alias):
            store.append_on_commit(items, using=alias)
            if lost:
                raise RolledBack

    def in_transaction(name: int, number: int) -> None:
        items = [(stream, Message(json.dumps([name, number]))) for stream in "ab"]
        for lost in (True, False):
            # The transaction of a caller may conflict with others at the level SERIALIZABLE. The caller must repeat it.
            store._database._retry(partial(commit, items, lost=lost), 30)

    def writer(name: int, write: Callable[[int, int], None]) -> Callable[[], None]:
        def write_all() -> None:
            for number in range(count):
                write(name, number)

        return write_all

    kinds = [single, single, single, batch, in_transaction, in_transaction]
    in_threads(*(writer(name, write) for name, write in enumerate(kinds)))
    store.number_outbox()
    for stream in "ab":
        assert_complete(history(store, stream), len(kinds), count)


def test_an_append_waits_for_another_writer_and_follows_its_message(
    make_store: MakeStore, alias: str, raw: psycopg.Connection, isolation: str
) -> None:
    store = make_store()
    append(store, "1")
    raw.execute("UPDATE reliable_cable_stream SET tail = tail + 1")
    raw.execute(
        'INSERT INTO reliable_cable_streamentry (stream_id, "offset", data, exclude, created) '
        "SELECT id, tail, '2', '', tail_at FROM reliable_cable_stream"
    )
    with mock.patch.object(store._single_append, "write", wraps=store._single_append.write) as write:
        thread = threading.Thread(target=with_own_connection(lambda: append(store, "3")))
        thread.start()
        wait_until(lambda: waits_for_a_lock(alias))
        raw.commit()
        thread.join(30)
        # At the other levels, the waiting transaction has failed, and was repeated.
        assert (write.call_count == 1) == (isolation == "READ COMMITTED")
    assert kept(store) == [(1, "1"), (2, "2"), (3, "3")]


def test_an_append_after_a_rollback_of_another_writer_leaves_no_hole(
    make_store: MakeStore, alias: str, raw: psycopg.Connection
) -> None:
    store = make_store()
    append(store, "1")
    raw.execute("UPDATE reliable_cable_stream SET tail = tail + 1")
    thread = threading.Thread(target=with_own_connection(lambda: append(store, "2")))
    thread.start()
    wait_until(lambda: waits_for_a_lock(alias))
    raw.rollback()
    thread.join(30)
    assert kept(store) == [(1, "1"), (2, "2")]


def test_committed_messages_that_have_no_number_yet_come_first(
    store: ModelStreamStore, alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(store, "1")
    monkeypatch.setattr(ModelStreamStore, "_number_after_commit", lambda self, names: None)
    with transaction.atomic(using=alias):
        store.append_on_commit([("a", Message("2"))], using=alias)
    assert append(store, "3") == [3]
    assert kept(store) == [(1, "1"), (2, "2"), (3, "3")]


def test_an_append_inside_a_transaction_is_not_a_part_of_it(store: ModelStreamStore, alias: str) -> None:
    append(store, "1")
    with suppress(RolledBack), transaction.atomic(using=alias):
        models.OutboxEntry.objects.using(alias).exists()
        append(store, "2")
        raise RolledBack
    assert kept(store) == [(1, "1"), (2, "2")]


def test_without_threads_an_append_is_a_part_of_the_transaction(make_store: MakeStore, alias: str) -> None:
    store = make_store(handler_threads=0)
    append(store, "1")
    with suppress(RolledBack), transaction.atomic(using=alias):
        append(store, "2")
        assert kept(store) == [(1, "1"), (2, "2")]
        raise RolledBack
    with transaction.atomic(using=alias):
        append(store, "3")
    assert kept(store) == [(1, "1"), (2, "3")]


def test_an_append_and_a_batch_return_positions_of_the_same_epoch(store: ModelStreamStore) -> None:
    (first,) = store.append([("a", Message("1"))])
    (single,) = store.append([("a", Message("2", exclude="sid"))])
    batch = store.append([("a", Message("3")), ("a", Message("4"))])
    assert [single, *batch] == [StreamPosition(first.epoch, offset) for offset in (2, 3, 4)]
    page = store.read("a", after=0, limit=10)
    assert [entry.exclude for entry in page.entries] == ["", "sid", "", ""]
    times = list(models.StreamEntry.objects.using(store.settings.database).order_by("offset").values_list("created"))
    assert times == sorted(times)


class TestOnAConnectionThatAppendsOften:
    """On such a connection, the statement is prepared, and BEGIN is sent together with it."""

    @pytest.fixture
    def store(self, make_store: MakeStore) -> ModelStreamStore:
        store: ModelStreamStore = make_store()
        for number in range(PREPARE_AFTER + 2):
            append(store, str(number))
        store.forget("a")
        append(store, "1")
        return store

    @pytest.fixture
    def connection(self, alias: str) -> Any:
        return connections[alias]

    @pytest.fixture
    def break_connection(self, connection: Any, raw: psycopg.Connection) -> Callable[[], None]:
        """Return a function that makes the server end this thread's connection."""
        raw.autocommit = True

        def end() -> None:
            raw.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.connection.info.backend_pid])

        return end

    def statements(self, connection: Any, call: Callable[[], Any]) -> list[str]:
        with CaptureQueriesContext(connection) as captured:
            call()
        return [query["sql"] for query in captured.captured_queries]

    def test_an_append_takes_two_round_trips(self, store: ModelStreamStore, connection: Any) -> None:
        first, second = self.statements(connection, lambda: append(store, "2"))
        assert first.startswith("BEGIN; EXECUTE reliable_cable_")
        assert second == "COMMIT"
        assert kept(store) == [(1, "1"), (2, "2")]

    def test_the_isolation_level_of_the_settings_counts(
        self, make_store: MakeStore, connection: Any, raw: psycopg.Connection
    ) -> None:
        level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.close()
        with mock.patch.dict(connection.settings_dict["OPTIONS"], isolation_level=level):
            store = make_store()
            append(store, *map(str, range(PREPARE_AFTER)))
            for number in range(PREPARE_AFTER + 2):
                first = self.statements(connection, partial(append, store, str(number)))[0]
                assert first.startswith("BEGIN")
            assert first.startswith("BEGIN ISOLATION LEVEL REPEATABLE READ; EXECUTE")
            connection.close()

    def test_a_connection_that_breaks_before_the_commit_is_opened_again(
        self, store: ModelStreamStore, break_connection: Callable[[], None]
    ) -> None:
        break_connection()
        assert append(store, "2") == [2]
        assert kept(store) == [(1, "1"), (2, "2")]

    def test_a_connection_that_breaks_between_the_statement_and_the_commit_makes_the_broadcast_uncertain(
        self, store: ModelStreamStore, connection: Any, break_connection: Callable[[], None]
    ) -> None:
        commit = connection.commit

        def lose_the_connection() -> None:
            break_connection()
            commit()

        with mock.patch.object(connection, "commit", lose_the_connection), pytest.raises(BroadcastUncertain):
            append(store, "2")
        assert append(store, "3") == [2]
        assert kept(store) == [(1, "1"), (2, "3")]

    def test_a_commit_whose_answer_is_lost_is_uncertain_and_not_repeated(
        self, store: ModelStreamStore, connection: Any
    ) -> None:
        commit = connection.commit

        def lose_the_answer() -> None:
            commit()
            raise OperationalError("server closed the connection unexpectedly")

        with mock.patch.object(connection, "commit", lose_the_answer), pytest.raises(BroadcastUncertain):
            append(store, "2")
        assert kept(store) == [(1, "1"), (2, "2")]

    def test_a_conflict_in_the_commit_is_retried(self, store: ModelStreamStore, connection: Any) -> None:
        commit = connection.commit
        conflicts = [psycopg.errors.SerializationFailure()]

        def fail_to_commit() -> None:
            if conflicts:
                raise OperationalError("could not commit") from conflicts.pop()
            commit()

        with mock.patch.object(connection, "commit", fail_to_commit):
            assert append(store, "2") == [2]
        assert kept(store) == [(1, "1"), (2, "2")]

    def test_a_statement_that_fails_leaves_no_transaction_open(
        self, store: ModelStreamStore, connection: Any, raw: psycopg.Connection
    ) -> None:
        raw.execute("ALTER TABLE reliable_cable_streamentry ADD CONSTRAINT short CHECK (length(data) < 9)")
        raw.commit()
        try:
            server_process = connection.connection.info.backend_pid
            with pytest.raises(BroadcastError, match="short") as caught:
                append(store, '"more than 9"')
            assert not isinstance(caught.value, BroadcastUncertain)
            # The connection may have been closed after the error.
            state = raw.execute("SELECT state FROM pg_stat_activity WHERE pid = %s", [server_process]).fetchone()
            assert state in (None, ("idle",))
            assert append(store, "2") == [2]
        finally:
            raw.rollback()
            raw.execute("ALTER TABLE reliable_cable_streamentry DROP CONSTRAINT short")
            raw.commit()

    def test_an_interrupted_append_leaves_no_transaction_open(self, store: ModelStreamStore, connection: Any) -> None:
        with mock.patch.object(connection, "commit", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            append(store, "2")
        assert connection.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert append(store, "3") == [2]

    def test_an_execute_wrapper_can_begin_transactions(self, store: ModelStreamStore, connection: Any) -> None:
        seen: list[str] = []

        def log(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
            result = execute(sql, *args)
            if "EXECUTE" in sql:
                seen.append(sql)
                with transaction.atomic(using=connection.alias):
                    models.OutboxEntry.objects.using(connection.alias).exists()
            return result

        with connection.execute_wrapper(log):
            assert append(store, "2") == [2]
        assert [sql.partition(" ")[0] for sql in seen] == ["EXECUTE"]

    @pytest.mark.parametrize("by_psycopg", [False, True], ids=["SQL", "psycopg"])
    def test_a_transaction_that_the_project_has_begun_without_django_is_not_committed(
        self, store: ModelStreamStore, connection: Any, by_psycopg: bool
    ) -> None:
        try:
            with connection.connection.transaction() if by_psycopg else nullcontext():
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1" if by_psycopg else "BEGIN")
                with pytest.raises(BroadcastError, match="Nothing was broadcast"):
                    append(store, "2")
        finally:
            connection.close()
        assert append(store, "2") == [2]

    def test_hooks_of_a_later_transaction_wait_for_its_commit(self, store: ModelStreamStore, connection: Any) -> None:
        append(store, "2")
        hook = mock.Mock()
        connection.set_autocommit(False)
        try:
            with transaction.atomic(using=connection.alias, savepoint=False):
                transaction.on_commit(hook, using=connection.alias)
            connection.set_autocommit(True)
            hook.assert_not_called()
        finally:
            connection.close()
