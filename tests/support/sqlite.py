"""Copies SQLite files while other processes use them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

#: How long, in seconds, to wait for the lock of another writer.
PATIENCE = 30.0


def copy_database(source: Path, target: Path) -> None:
    """Replace the content of an SQLite file with that of another one, in one transaction.

    Processes that use the target see the new content from their next transaction on.
    """
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target, timeout=PATIENCE)) as other:
        one.backup(other, sleep=0.01)
