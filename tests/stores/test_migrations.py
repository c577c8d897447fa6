"""The migrations of a database in use: they keep its rows, and block no poll while they wait for other transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from unittest import mock

import psycopg
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import OperationalError, connections, transaction
from django.db.migrations.executor import MigrationExecutor

from tests.stores.conftest import MODEL_STORES, POSTGRES

storage: Any = import_module("reliable_cable.migrations.0006_storage_parameters")
whispers: Any = import_module("reliable_cable.migrations.0007_whispers")

TRANSIENT = "reliable_cable_transiententry"
postgres = pytest.mark.parametrize("alias", [POSTGRES], indirect=True)


@contextmanager
def locked(alias: str, table: str, mode: str) -> Iterator[psycopg.Connection]:
    """Lock a table on a connection of its own, as a backup or a vacuum does."""
    with psycopg.connect(**connections[alias].get_connection_params()) as connection:
        connection.execute(f"LOCK TABLE {table} IN {mode} MODE")
        yield connection


def migrate(alias: str, name: str) -> None:
    MigrationExecutor(connections[alias]).migrate([("reliable_cable", name)])


def execute(alias: str, statement: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None


def options(alias: str) -> dict[str, list[str]]:
    """Return the storage parameters of each table."""
    rows = execute(alias, "SELECT relname, reloptions FROM pg_class WHERE relname LIKE 'reliable_cable_%'")
    return {name: values or [] for name, values in rows}


def kind(alias: str) -> str:
    """Return `u` if the table of transient messages is unlogged, `p` otherwise."""
    ((found,),) = execute(alias, "SELECT relpersistence FROM pg_class WHERE relname = 'reliable_cable_transiententry'")
    return str(found)


@pytest.mark.django_db
def test_the_migrations_are_complete() -> None:
    call_command("makemigrations", "reliable_cable", check=True, dry_run=True, verbosity=0)


@pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
def test_rows_and_servers_of_the_former_version_outlast_the_migrations(alias: str) -> None:
    insert = (
        "INSERT INTO reliable_cable_transiententry (name, data, exclude, origin, created) VALUES ('a', '%d', '', '', 0)"
    )
    try:
        migrate(alias, "0005_presence")
        execute(alias, insert % 1)
    finally:
        migrate(alias, "0007_whispers")
    execute(alias, insert % 2)
    rows = execute(alias, "SELECT data, whisper FROM reliable_cable_transiententry ORDER BY id")
    assert [(data, bool(whisper)) for data, whisper in rows] == [("1", False), ("2", False)]
    if connections[alias].vendor == "postgresql":
        assert kind(alias) == "u"
        assert options(alias)["reliable_cable_stream"] == ["fillfactor=50", "autovacuum_vacuum_scale_factor=0.05"]


@postgres
def test_storage_parameters_do_not_wait_long_for_a_vacuum(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    with connections[alias].schema_editor(atomic=False) as editor:
        storage.reset_storage(apps, editor)
        try:
            with (
                locked(alias, "reliable_cable_stream", "SHARE UPDATE EXCLUSIVE"),
                mock.patch.object(storage, "LOCK_TIMEOUT", 0.05),
            ):
                storage.set_storage(apps, editor)
            found = options(alias)
        finally:
            storage.set_storage(apps, editor)
    assert found["reliable_cable_stream"] == []
    assert "autovacuum_vacuum_threshold=1000" in found[TRANSIENT], "the other tables are changed"
    assert "ALTER TABLE reliable_cable_stream SET (fillfactor = 50" in caplog.text
    assert len(caplog.records) == 1


@contextmanager
def paused_by(poll: Callable[[float], None] | None = None) -> Iterator[mock.Mock]:
    """Replace the pauses between attempts by calls of `poll`. The pauses of other threads stay as they are."""
    paused = mock.Mock(side_effect=poll)
    with mock.patch.object(whispers, "time", SimpleNamespace(sleep=paused)):
        yield paused


@postgres
class TestTheLock:
    @pytest.fixture(autouse=True)
    def short(self) -> Iterator[None]:
        with mock.patch.multiple(whispers, LOCK_TIMEOUT=0.05, ATTEMPTS=3):
            yield

    def test_polls_pass_between_the_attempts(self, alias: str) -> None:
        with locked(alias, TRANSIENT, "ACCESS SHARE") as backup:

            def poll(seconds: float) -> None:
                with psycopg.connect(**connections[alias].get_connection_params()) as server:
                    server.execute("SET lock_timeout = '10s'")
                    server.execute("SELECT * FROM reliable_cable_transiententry")
                backup.rollback()

            with (
                paused_by(poll) as paused,
                connections[alias].schema_editor(atomic=True) as editor,
            ):
                whispers.lock(apps, editor)
                assert paused.call_count == 1
                query = "SELECT mode FROM pg_locks WHERE relation = 'reliable_cable_transiententry'::regclass"
                granted = execute(alias, query)
                assert granted == [("AccessExclusiveLock",)]

    def test_a_long_backup_is_reported(self, alias: str, caplog: pytest.LogCaptureFixture) -> None:
        with (
            locked(alias, TRANSIENT, "ACCESS SHARE"),
            paused_by() as paused,
            pytest.raises(OperationalError, match="lock timeout"),
            connections[alias].schema_editor(atomic=True) as editor,
        ):
            whispers.lock(apps, editor)
        assert paused.call_count == 2
        assert caplog.text.count("which another transaction uses") == 1


@postgres
class TestUnlogged:
    def test_a_server_that_refuses_it_keeps_the_table_logged(
        self, alias: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with transaction.atomic(using=alias), connections[alias].schema_editor(atomic=True) as editor:
            whispers.set_logged(apps, editor)
            editor.execute(f"CREATE PUBLICATION reliable_cable_test FOR TABLE {TRANSIENT}")
            whispers.set_unlogged(apps, editor)
            assert kind(alias) == "p"
            transaction.set_rollback(True, using=alias)
        assert "stays logged" in caplog.text

    def test_a_timeout_is_an_error_so_that_the_migration_is_repeated(self, alias: str) -> None:
        with locked(alias, TRANSIENT, "ACCESS SHARE"), connections[alias].schema_editor(atomic=True) as editor:
            editor.execute("SET LOCAL lock_timeout = '50ms'")
            with pytest.raises(OperationalError, match="lock timeout"):
                whispers.set_unlogged(apps, editor)
