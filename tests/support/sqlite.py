"""Copies SQLite files that other processes have open."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

#: How long, in seconds, to wait for other writers.
PATIENCE = 30.0


def copy_database(source: Path, target: Path) -> None:
    """Replace the content of a SQLite file with that of another one, in one transaction.

    Processes that have the target open see the new content from their next transaction on, as after a restore.
    """
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target, timeout=PATIENCE)) as other:
        one.backup(other, sleep=0.01)
