"""Databases that exist only during a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management import call_command
from django.db import connections


@contextmanager
def another_database(alias: str, **options: Any) -> Iterator[None]:
    """Add a database to Django's settings, with the tables of `reliable_cable`."""
    connections.settings[alias] = {**connections.settings["default"], "OPTIONS": {}, **options}
    try:
        call_command("migrate", "reliable_cable", database=alias, verbosity=0)
        yield
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]
