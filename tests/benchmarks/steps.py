"""Measures what `broadcast()` costs its caller on each engine: the database, Redis, and each adapter for anycable-go.

Each engine is measured in its own process, which uses the test project and runs no server.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

from tests.support.nats import NatsServer
from tests.support.postgres import find_postgres, running_postgres
from tests.support.redis import RedisServer
from tests.support.redis_cluster import RedisCluster
from tests.support.server import PATIENCE, ROOT, environment, make_database
from tests.support.standalone_anycable import StandaloneAnyCable

#: The payload has about 200 bytes of JSON, as in `fanout`.
PAYLOAD: Final = {"n": 1, "text": "x" * 180}
#: The number of broadcasts in a round, and the number of rounds. The medians of the rounds are the results.
BROADCASTS: Final = 200
ROUNDS: Final = 7
#: The program of the process in which an engine is measured.
_SCRIPT: Final = "from tests.benchmarks.steps import measure_here; measure_here()"

#: What the process needs to use an engine: the settings of the package, and environment variables.
Step = tuple[Mapping[str, Any], Mapping[str, str]]


def run(folder: Path) -> int:
    """Measure all engines, and print a table. Return 0.

    Args:
        folder: an empty folder for databases and logs.
    """
    sys.stdout.write(f"{'':24}{'CPU':>10}{'time':>10}   µs for each broadcast()\n")
    for name, start in STEPS.items():
        place = folder / name.replace(" ", "-")
        place.mkdir()
        with ExitStack() as stack:
            settings, variables = start(place, stack)
            cpu, wall = _measure(make_database(place, **variables), settings, variables)
        sys.stdout.write(f"{name:24}{cpu:10.0f}{wall:10.0f}\n")
        sys.stdout.flush()
    return 0


def _measure(database: Path, settings: Mapping[str, Any], variables: Mapping[str, str]) -> tuple[float, float]:
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        cwd=ROOT,
        env=environment(database, {"SECRET": "s", **settings}, **variables),
        stdout=subprocess.PIPE,
        check=True,
        timeout=PATIENCE * 10,
    )
    cpu, wall = json.loads(result.stdout)
    return cpu, wall


def measure_here() -> None:
    """Print the CPU time that a broadcast costs this process, and how long it takes, as JSON, in microseconds."""
    import django

    django.setup()
    from reliable_cable import broadcast

    rounds = []
    for _ in range(ROUNDS + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        for number in range(BROADCASTS):
            broadcast("steps", {**PAYLOAD, "n": number})
        rounds.append((time.process_time() - cpu, time.perf_counter() - wall))
    # The first round opens connections, so it is left out.
    sys.stdout.write(json.dumps([median(each) / BROADCASTS * 1e6 for each in zip(*rounds[1:], strict=True)]))


def _sqlite(folder: Path, stack: ExitStack) -> Step:
    return {}, {}


def _postgres(folder: Path, stack: ExitStack) -> Step:
    binaries = find_postgres()
    assert binaries is not None, "PostgreSQL is not installed"
    return {}, {"CABLE_TEST_POSTGRES": stack.enter_context(running_postgres(binaries))}


def _redis(folder: Path, stack: ExitStack) -> Step:
    return {"REDIS_URL": stack.enter_context(RedisServer(folder / "redis")).url}, {}


def _cluster(folder: Path, stack: ExitStack) -> Step:
    return {"REDIS_URL": stack.enter_context(RedisCluster(folder)).url}, {}


def _redisx(folder: Path, stack: ExitStack) -> Step:
    # No anycable-go is needed: the adapter only appends to a Redis stream.
    settings, variables = _redis(folder, stack)
    return {"BROADCAST_ADAPTER": "redisx", **settings}, variables


def _nats(folder: Path, stack: ExitStack) -> Step:
    server = stack.enter_context(NatsServer(folder / "nats"))
    return {"BROADCAST_ADAPTER": "nats", "NATS_URL": server.url}, {}


def _http(folder: Path, stack: ExitStack) -> Step:
    anycable = stack.enter_context(StandaloneAnyCable(folder, broadcast_adapter="http", secret="s"))
    return {"BROADCAST_ADAPTER": "http", "HTTP_BROADCAST_URL": f"http://127.0.0.1:{anycable.port}/_broadcast"}, {}


#: The engines, and for each a function that starts its servers. The stack stops them.
STEPS: Final[Mapping[str, Callable[[Path, ExitStack], Step]]] = {
    "SQLite": _sqlite,
    "PostgreSQL": _postgres,
    "Redis": _redis,
    "Redis Cluster": _cluster,
    "anycable-go, redisx": _redisx,
    "anycable-go, nats": _nats,
    "anycable-go, http": _http,
}
