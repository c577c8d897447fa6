"""What servers under test need beside them: a Redis of their own, a migrated database, and a folder."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.fanout.floor import compile_floor
from tests.support.redis import RedisServer
from tests.support.server import ROOT


@dataclass(frozen=True)
class Stage:
    """What there is.

    Args:
        folder: for logs.
        redis: the server, empty at first.
        environment: of servers and publishers, this process's included.
        floor: the compiled loop; None: there is no C compiler, or it was not asked for.
    """

    folder: Path
    redis: RedisServer
    environment: Mapping[str, str]
    floor: Path | None


@contextlib.contextmanager
def stage(*, with_floor: bool) -> Iterator[Stage]:
    """Have it for as long as the block."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        floor = compile_floor(folder) if with_floor else None
        with RedisServer(folder / "redis", options={"appendonly": "no"}) as redis:
            environment = {
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "tests.benchmarks.project.settings",
                "CABLE_BENCH_REDIS": redis.url,
                "CABLE_BENCH_DATABASE": str(folder / "db.sqlite3"),
                **({"CABLE_BENCH_FLOOR": str(floor)} if floor else {}),
            }
            migrate = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
            subprocess.run(migrate, cwd=ROOT, env=environment, check=True, timeout=60)
            yield Stage(folder, redis, environment, floor)
