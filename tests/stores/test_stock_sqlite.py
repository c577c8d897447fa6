"""SQLite as `startproject` configures it: no options, a rollback journal, a connection for each request.

Many threads of several processes broadcast at the same time, while other threads read and write the same file.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.examples import examples

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 3

MIGRATE = """
import sys
from django.conf import settings
database = {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}
settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["reliable_cable"], SECRET_KEY="stock")
import django
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The path of a database with the app's tables."""
    file = str(tmp_path / "db.sqlite3")
    subprocess.run([sys.executable, "-c", MIGRATE, file], check=True, cwd=ROOT)
    return file


def run(path: str, writers: int, count: int, **options: Any) -> subprocess.Popen[str]:
    """Start a process that broadcasts (tests/stores/stock.py)."""
    options = {"poll": False, "sessions": False, "history_size": 10_000, "young_time": 20.0, **options}
    options.update(path=path, writers=writers, count=count)
    command = [sys.executable, "-m", "tests.stores.stock", json.dumps(options)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def refused(*processes: subprocess.Popen[str]) -> list[str]:
    """Wait for the end of the processes, and return the errors of all their broadcasts."""
    return [error for process in processes for error in json.loads(process.communicate()[0])]


def stored(path: str) -> tuple[list[Any], list[int]]:
    """Return the payloads and the offsets of all stored messages of the stream `a`."""
    database = sqlite3.connect(path)
    try:
        rows = database.execute(
            "SELECT data, offset FROM reliable_cable_streamentry entry JOIN reliable_cable_stream stream "
            "ON stream.id = entry.stream_id WHERE stream.name = 'a' ORDER BY offset"
        ).fetchall()
    finally:
        database.close()
    return [json.loads(data) for data, _ in rows], [offset for _, offset in rows]


def test_broadcasts_of_many_writers_do_not_fail(path: str) -> None:
    # tests/integration/test_stock_sqlite.py does the same while clients of a server reconnect.
    writers, count = (6, 5, 5), examples(20)
    started = [run(path, number, count) for number in writers]
    assert refused(*started) == []
    assert [process.returncode for process in started] == [0] * PROCESSES
    payloads, offsets = stored(path)
    assert offsets == list(range(1, sum(writers) * count + 1))
    by_writer: dict[tuple[int, int], list[int]] = {}
    for process, writer, number in payloads:
        by_writer.setdefault((process, writer), []).append(number)
    assert list(by_writer.values()) == [list(range(count))] * sum(writers)


def test_a_loop_of_broadcasts_does_not_fail_because_of_its_own_trims(path: str) -> None:
    assert refused(run(path, 1, 300, poll=True, history_size=10, young_time=0.0)) == []
    payloads, offsets = stored(path)
    assert [number for _, _, number in payloads][-10:] == list(range(290, 300))
    assert offsets[-1] == 300
    assert len(offsets) < 300, "nothing was trimmed"
