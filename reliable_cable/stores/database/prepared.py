"""Prepared statements: PostgreSQL parses them once for each connection, and need not plan each execution."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final
from weakref import WeakKeyDictionary

from django.db import Error, connections

from .begin import begin_sql
from .database import sqlstate

#: The number of executions on a connection before the statement is prepared there. On a connection with few executions,
#: preparing it would cost more time than it saves.
PREPARE_AFTER: Final = 3

#: The SQLSTATE codes of errors after which a prepared statement is not used any more. 26000: other code has discarded
#: it. 0A000: a migration has changed its tables.
_STALE: Final = {"26000", "0A000"}


class StaleStatementError(Exception):
    """Raised if a prepared statement cannot be executed. Nothing was changed, but an open transaction is broken.

    On this connection, the statement is not prepared again.
    """


class PreparedStatement:
    """Executes a statement, which is prepared on connections that execute it often.

    PostgreSQL may need longer to plan a statement than to execute it. Connections that go through a connection
    pooler do not prepare it, because the pooler may change the server connection between two transactions.

    Args:
        alias: the alias of the database.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        #: The number of executions on each of the driver's connections, counted until the statement is prepared there;
        #: None if it must not be prepared.
        self._executions: WeakKeyDictionary[Any, int | None] = WeakKeyDictionary()

    def execute(self, query: str, params: Sequence[Any], *, begin: bool = False) -> Any:
        """Execute the statement, and return its first row; None if there is none.

        Args:
            query: the statement, with the placeholders `%s` and without other percent signs. It is the same in all
                calls.
            params: the values of the placeholders.
            begin: whether to begin a transaction, which needs psycopg 3. If the statement is prepared, this takes no
                round trip of its own.

        Raises:
            StaleStatementError: the statement was prepared, but cannot be executed any more.
            django.db.Error: the statement failed.
        """
        wrapper = connections[self._alias]
        with wrapper.cursor() as cursor:
            raw = wrapper.connection
            count = self._executions.get(raw, 0)
            if begin and (count is None or count <= PREPARE_AFTER):
                cursor.execute(begin_sql(raw))
                begin = False
            if count == PREPARE_AFTER:
                # A rollback does not remove a prepared statement.
                count = count + 1 if _prepare(wrapper, cursor, query) else None
                self._executions[raw] = count
            if count is None or count < PREPARE_AFTER:
                cursor.execute(query, params)
                self._executions[raw] = None if count is None else count + 1
                return cursor.fetchone()
            execute = _statements(query)[2]
            try:
                cursor.execute(f"{begin_sql(raw)}; {execute}" if begin else execute, params)
            except Error as error:
                if sqlstate(error) not in _STALE:
                    raise
                self._executions[raw] = None
                raise StaleStatementError(str(error)) from error
            if begin:
                cursor.nextset()  # the first result is that of BEGIN
            return cursor.fetchone()


def _prepare(wrapper: Any, cursor: Any, query: str) -> bool:
    """Prepare a statement. Return False if the connection goes through a pooler, or binds parameters on the server."""
    settings = wrapper.settings_dict
    if settings.get("DISABLE_SERVER_SIDE_CURSORS") or settings["OPTIONS"].get("server_side_binding"):
        return False
    name, definition, _ = _statements(query)
    # Another object may have prepared the same statement.
    cursor.execute("SELECT pg_backend_pid(), EXISTS (SELECT 1 FROM pg_prepared_statements WHERE name = %s)", [name])
    pid, exists = cursor.fetchone()
    # A pooler invents a process id for each of its clients.
    if pid != wrapper.connection.info.backend_pid:
        return False
    if not exists:
        cursor.execute(f"PREPARE {name} AS {definition}")
    return True


@lru_cache(maxsize=16)
def _statements(query: str) -> tuple[str, str, str]:
    """Return the name and the definition of a prepared statement, and the statement that executes it."""
    first, *parts = query.split("%s")
    definition = first + "".join(f"${number}{part}" for number, part in enumerate(parts, 1))
    name = f"reliable_cable_{hashlib.blake2b(query.encode(), digest_size=8).hexdigest()}"
    return name, definition, f"EXECUTE {name}({', '.join(['%s'] * len(parts))})"
