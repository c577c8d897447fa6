"""Transactions whose BEGIN is sent to PostgreSQL together with their only statement, to save a round trip."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import Error

from .driver import uses_psycopg3


def can_begin(connection: Any) -> bool:
    """Return whether BEGIN can be sent together with a statement. This needs psycopg 3.

    Django does not know that such a transaction is open. So there must be no execute wrappers, which are functions of
    the project that are called at each statement: they could begin another transaction. Nor may the project have begun
    a transaction by itself, with SQL or with psycopg, or have set properties of transactions that Django does not set.
    """
    if connection.execute_wrappers or not uses_psycopg3(connection):
        return False
    raw = connection.connection
    if raw is None:
        return True
    idle = raw.info.transaction_status == 0
    return idle and raw.read_only is None and raw.deferrable is None


def begin_sql(raw: Any) -> str:
    """Return the statement by which a connection of psycopg 3 begins its transactions."""
    level = raw.isolation_level
    return "BEGIN" if level is None else f"BEGIN ISOLATION LEVEL {level.name.replace('_', ' ')}"


@contextmanager
def begun_by_statement(connection: Any) -> Iterator[None]:
    """Run a block whose statement begins a transaction. Afterwards, commit or roll back as `atomic()` does."""
    try:
        yield
        connection.commit()
    except BaseException:
        try:
            connection.rollback()
        except Error:
            connection.close()
        raise
    finally:
        # `commit` sets this to True, because Django calls it only while autocommit is off. Here, autocommit is on.
        connection.run_commit_hooks_on_set_autocommit_on = False
