"""The database driver of a connection."""

from typing import Any


def uses_psycopg3(connection: Any) -> bool:
    """Return whether a connection of Django is one to PostgreSQL, by psycopg 3."""
    if connection.vendor != "postgresql":
        return False
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)
