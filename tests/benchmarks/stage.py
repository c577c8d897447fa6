"""Creates the resources of servers under test: a Redis server, a migrated database and a folder."""

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
    """The resources of servers under test.

    Args:
        folder: the folder for logs.
        redis: the Redis server, which is empty at first.
        environment: the environment variables of servers and publishers.
        floor: the path of the library that `compile_floor` has made; None: it is not needed, or there is no C compiler.
    """

    folder: Path
    redis: RedisServer
    environment: Mapping[str, str]
    floor: Path | None


@contextlib.contextmanager
def stage(*, with_floor: bool) -> Iterator[Stage]:
    """Create the resources, and remove them after the block."""
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
