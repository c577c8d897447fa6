"""Measures what a token costs the process that writes a run, with a new Redis server and an SQLite file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from time import process_time

from django.conf import settings
from django.core.management import call_command

from reliable_cable.runs.models import Run
from reliable_cable.runs.writing import writing
from tests.support.redis import RedisServer

#: The text of a token.
TOKEN = "word "
#: For each row: the number of tokens, and how many of them are written per second; None: as many as possible.
ROWS = ((200_000, None), (5_000, 1_000), (1_500, 300), (500, 100))
#: The maximum CPU time of a token when a model writes as fast as it can, in seconds.
MAX_COST = 20e-6


def run(folder: Path) -> int:
    """Print the CPU time for each token, at several speeds. Return 1 if the highest speed costs too much, else 0."""
    with RedisServer(folder / "redis", options={"appendonly": "no"}) as server:
        settings.RELIABLE_CABLE = {"REDIS_URL": server.url}
        settings.DATABASES["default"]["NAME"] = str(folder / "runs.sqlite3")
        call_command("migrate", verbosity=0)
        sys.stdout.write("tokens a second | tokens | CPU per token, µs | broadcasts\n")
        costs = [_measure(*row) for row in ROWS]
    return 0 if costs[0] < MAX_COST else 1


def _measure(count: int, rate: int | None) -> float:
    started = Run.objects.start()
    with writing(started.pk) as out:
        _write(out.write, count // 10, rate)
        began = process_time()
        _write(out.write, count, rate)
        used = process_time() - began
    began = process_time()
    _write(lambda token: None, count, rate)
    cost = (used - (process_time() - began)) / count
    events = _broadcasts(started)
    sys.stdout.write(f"{rate or 'all at once':>15} | {count:6} | {cost * 1e6:17.1f} | {events}\n")
    return cost


def _write(write: Callable[[str], object], count: int, rate: int | None) -> None:
    began = time.monotonic()
    for number in range(count):
        write(TOKEN)
        if rate is not None:
            time.sleep(max(0.0, began + number / rate - time.monotonic()))


def _broadcasts(run: Run) -> int:
    from reliable_cable import position

    return position(run.stream).offset
