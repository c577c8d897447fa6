"""Distinguishes outages of a database or store from other errors. After an outage, a retry may succeed."""

import sqlite3

from django.db import InterfaceError, OperationalError

from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError


def is_outage(error: BaseException | None) -> bool:
    """Return whether an error means that a database or store could not be reached, and nothing was changed."""
    if isinstance(error, BroadcastError):
        return not isinstance(error, BroadcastUncertain) and is_outage(error.__cause__)
    if isinstance(error, OperationalError) and _is_wrong_sql(error.__cause__):
        return False
    return isinstance(error, OperationalError | InterfaceError | StoreError)


def _is_wrong_sql(cause: BaseException | None) -> bool:
    """Return whether SQLite refused a statement because the statement is wrong, for example if a table is missing.

    Django raises `OperationalError` for this on SQLite, and `ProgrammingError` on other databases.
    """
    return isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
