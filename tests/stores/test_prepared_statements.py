"""The statement that appends a single message is planned once on a connection with several appends."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from reliable_cable.conf import CableSettings
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.model import ModelStreamStore
from tests.stores.conftest import POSTGRES, finish_store_threads
from tests.stores.test_streams import append, kept

pytestmark = pytest.mark.parametrize("alias", [POSTGRES], indirect=True)


@pytest.fixture
def store(alias: str) -> Iterator[ModelStreamStore]:
    # `make_store` sets a clock. Its time would be a parameter of the statement.
    yield ModelStreamStore(CableSettings(database=alias))
    connections[alias].close()
    finish_store_threads()


def statements(alias: str) -> int:
    """Return the number of prepared statements of this connection."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'reliable_cable_%%'")
        return int(cursor.fetchone()[0])


def write(store: ModelStreamStore, count: int) -> None:
    """Append the next `count` numbers, each in its own call, and check the results."""
    tail = store.position("a").offset
    assert [append(store, str(number)) for number in range(tail, tail + count)] == [
        [offset] for offset in range(tail + 1, tail + count + 1)
    ]
    assert kept(store) == [(number + 1, str(number)) for number in range(tail + count)]


def test_it_is_prepared_if_a_connection_is_used_often(store: ModelStreamStore, alias: str) -> None:
    write(store, 2)
    assert statements(alias) == 0
    write(store, 5)
    assert statements(alias) == 1
    write(store, 2)
    connections[alias].close()
    write(store, 1)
    assert statements(alias) == 0


@pytest.mark.parametrize(
    "change",
    [
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "ALTER TABLE reliable_cable_stream ALTER COLUMN low TYPE bigint",
        "ALTER TABLE reliable_cable_stream ALTER COLUMN tail_at TYPE numeric",
    ],
)
def test_it_may_become_invalid(store: ModelStreamStore, alias: str, change: str) -> None:
    write(store, 6)
    assert statements(alias) == 1
    with connections[alias].cursor() as cursor:
        cursor.execute(change)
    write(store, 3)
    if "numeric" in change:
        with connections[alias].cursor() as cursor:
            cursor.execute("ALTER TABLE reliable_cable_stream ALTER COLUMN tail_at TYPE double precision")
        write(store, 3)


def test_two_stores_share_it(store: ModelStreamStore, alias: str) -> None:
    write(store, 6)
    write(ModelStreamStore(store.settings), 6)
    assert statements(alias) == 1


@pytest.mark.parametrize("option", ["DISABLE_SERVER_SIDE_CURSORS", "server_side_binding"])
def test_it_is_not_prepared_where_this_is_impossible(store: ModelStreamStore, alias: str, option: str) -> None:
    settings = connections[alias].settings_dict
    holder = settings["OPTIONS"] if option.islower() else settings
    connections[alias].close()
    with mock.patch.dict(holder, {option: True}):
        write(store, 8)
        assert statements(alias) == 0
        connections[alias].close()


def test_it_finds_the_entry_before_the_new_one_in_a_table_without_statistics(
    store: ModelStreamStore, alias: str
) -> None:
    """Other indexes begin with the stream, too. With one of them, PostgreSQL would read all entries of the stream."""
    write(store, 1)
    connection = connections[alias]
    with transaction.atomic(using=alias), connection.cursor() as cursor:
        cursor.execute("DELETE FROM pg_statistic WHERE starelid = 'reliable_cable_streamentry'::regclass")
        cursor.execute("SET LOCAL enable_seqscan = off")
        with CaptureQueriesContext(connection) as captured:
            store._single_append.write("a", Message("2"), False)
        cursor.execute("EXPLAIN " + captured[-1]["sql"])
        plan = "\n".join(row[0] for row in cursor.fetchall())
        transaction.set_rollback(True, using=alias)
    assert "Index Scan Backward using reliable_cable_entry_offset" in plan
