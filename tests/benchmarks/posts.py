"""Measures what a broadcast over HTTP costs a server: `python -m tests.benchmarks posts`.

The same messages are posted to the view of Django, to `CableHTTP`, and to a bare ASGI application that only decodes
them, on the same server, one after another on one connection. In a round, each of them gets equally many requests.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping

import httpx

from tests.benchmarks.fanout.process import usage
from tests.benchmarks.fanout.servers import DAPHNE, PROJECT, Running, Subject, running
from tests.benchmarks.stage import stage

#: The paths to post to.
PATHS: Mapping[str, str] = {"bare ASGI": "/bare", "CableHTTP": "/direct", "Django view": "/_broadcast"}
#: The number of rounds. The lowest of their costs is the result, because other work on the machine only adds to it.
ROUNDS = 7
SUBJECTS = (
    Subject("uvicorn", "cable_serve", PROJECT),
    Subject("daphne", "cable_serve", PROJECT, options=DAPHNE),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--posts", type=int, default=500, help="requests of each kind in a round (500)")


def run(options: argparse.Namespace) -> int:
    """Measure the servers, print a line for each, and return the exit code."""
    with stage(with_floor=False) as resources:
        for subject in SUBJECTS:
            with running(subject, resources.environment, resources.folder / "log") as server:
                costs = _measure(server, options.posts)
            text = ", ".join(f"{name} {cost:.2f}" for name, cost in costs.items())
            sys.stdout.write(f"{subject.name:8} ms of CPU per POST: {text}\n")
            sys.stdout.flush()
    return 0


def _measure(server: Running, posts: int) -> dict[str, float]:
    """Return the CPU time that a POST of each kind costs, in ms."""
    costs: dict[str, list[float]] = {name: [] for name in PATHS}
    body = json.dumps({"stream": "bench", "data": json.dumps({"n": 1, "text": "x" * 200})}).encode()
    headers = {"Authorization": "Bearer bench", "Content-Type": "application/json"}
    with httpx.Client(base_url=server.http, headers=headers, trust_env=False) as http:
        for number in range(ROUNDS + 1):
            for name, path in PATHS.items():
                before = usage(server.pid)
                for _ in range(posts if number else 50):  # the first round warms up
                    http.post(path, content=body).raise_for_status()
                if number:
                    costs[name].append((usage(server.pid) - before).cpu / posts * 1000)
    return {name: min(values) for name, values in costs.items()}
