"""Tells an outage of a database or a store, after which the same call may succeed, from other errors."""

from __future__ import annotations

import sqlite3

from django.db import InterfaceError, OperationalError

from .exceptions import BroadcastError, BroadcastUncertain, StoreError


def is_outage(error: BaseException | None) -> bool:
    """Return whether a database or a store was out of reach, and nothing was done because of that."""
    if isinstance(error, BroadcastError):
        return not isinstance(error, BroadcastUncertain) and is_outage(error.__cause__)
    if isinstance(error, OperationalError) and _is_wrong_sql(error.__cause__):
        return False
    return isinstance(error, OperationalError | InterfaceError | StoreError)


def _is_wrong_sql(cause: BaseException | None) -> bool:
    """Return whether SQLite refused a statement as such: a table is missing, say. Other databases have other errors."""
    return isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
