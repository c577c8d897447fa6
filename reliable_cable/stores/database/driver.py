"""The database driver of a connection."""

from typing import Any


def uses_psycopg3(connection: Any) -> bool:
    """Return whether a Django connection is a PostgreSQL connection that uses psycopg 3."""
    if connection.vendor != "postgresql":
        return False
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)
