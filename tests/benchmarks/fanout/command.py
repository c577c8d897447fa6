"""The command `python -m tests.benchmarks fanout`: measures servers, prints tables, and writes the results to files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.stage import stage
from tests.support.server import ROOT

from . import load
from .lines import LineProcess
from .measure import QUICK, Bench, Plan
from .plot import plot
from .report import report
from .servers import SUBJECTS, by_url

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("channels", "channels_redis", "daphne", "django", "redis", "twisted", "uvicorn", "uvloop", "websockets")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--quick", action="store_true", help="measure one short round: rough figures in three minutes")
    parser.add_argument("--only", action="append", default=[], help="measure only servers with this text in their name")
    parser.add_argument("--connections", type=int, help="subscribers of the stream (1000)")
    parser.add_argument("--size", type=int, help="bytes of JSON in each message (200)")
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        type=by_url,
        metavar="NAME=WS,POST,KEY,PID",
        help="also measure a running Action Cable server, which must allow unsigned streams of $pubsub",
    )
    parser.add_argument("--output", type=Path, help="file for the results (JSON); tables and plot are put beside it")


def environment_of(floor: Path | None, redis: str) -> dict[str, Any]:
    """Return a description of the machine and the software."""
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "kernel": platform.release().partition("-")[0],
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "redis": redis,
        "floor": "floor from C" if floor else "floor from Python by ctypes (no C compiler)",
        "packages": packages,
    }


def run(options: argparse.Namespace) -> int:
    """Measure the servers, print and write the results, and return the exit code."""
    plan = QUICK if options.quick else Plan()
    if options.connections:
        plan = replace(plan, connections=options.connections)
    if options.size:
        plan = replace(plan, size=options.size)
    subjects = [one for one in SUBJECTS if not options.only or any(word in one.name for word in options.only)]
    program = load.build()
    with stage(with_floor=True) as resources:
        publisher = partial(
            LineProcess, [sys.executable, "-m", "tests.benchmarks.fanout.publisher"], resources.environment, ROOT
        )
        measured: dict[str, Any] = {
            "environment": environment_of(resources.floor, resources.redis.binary.name),
            "plan": asdict(plan),
            "results": [],
        }
        with publisher() as other:
            bench = Bench(plan, program, resources.folder, resources.environment, publisher, other)
            with bench.over_floor():
                for subject in (*subjects, *options.url):
                    sys.stderr.write(f"{subject.name} …\n")
                    measured["results"].append(bench.measure(subject))
    sys.stdout.write(report(measured) + "\n")
    complete = not (options.quick or options.only or options.connections or options.size)
    output = options.output or (RESULTS / "fanout.json" if complete else None)
    if output is not None:
        output.write_text(json.dumps(_rounded(measured), indent=1) + "\n")
        output.with_suffix(".svg").write_text(plot(measured))
        output.with_suffix(".md").write_text(f"{_heading(measured)}\n\n{report(measured)}\n")
        sys.stdout.write(f"\n{output}\n")
    return 0


def _heading(measured: dict[str, Any]) -> str:
    """Return a sentence that says when and on which machine the results were measured."""
    environment = measured["environment"]
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items() if number)
    return (
        f"Measured on {environment['date']} by `python -m tests.benchmarks fanout`: Linux {environment['kernel']}, "
        f"{environment['cores']} cores, Python {environment['python']}, {environment['redis']}, {packages}."
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value
