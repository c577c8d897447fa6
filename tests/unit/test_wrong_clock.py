"""`wrong_clock` makes only the wall clock of a process wrong, and the process leaves no files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import find_faketime, wrong_clock

pytestmark = pytest.mark.skipif(find_faketime() is None, reason="no libfaketime on this machine")

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - libfaketime creates its files here

#: A script that prints the times of its process.
TIMES = """
import asyncio, json, threading, time
def measure(call):
    started = time.monotonic()
    call()
    return time.monotonic() - started
print(json.dumps({
    "wall": time.time(),
    "monotonic": time.monotonic(),
    "sleep": measure(lambda: time.sleep(0.05)),
    "wait": measure(lambda: threading.Event().wait(0.05)),
    "loop": measure(lambda: asyncio.run(asyncio.sleep(0.05))),
}), flush=True)
input()
"""
#: A script that prints how often its threads wait while three of them compute.
WAITS = """
import json, resource, threading, time
def compute():
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        sum(range(1000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
threads = [threading.Thread(target=compute) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before), flush=True)
"""


@pytest.fixture(params=[90.0, -90.0])
def ahead(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@contextmanager
def run(script: str, ahead: float) -> Iterator[subprocess.Popen[str]]:
    """Run a script with a wrong clock."""
    pipe = subprocess.PIPE
    command, environment = [sys.executable, "-c", script], {**os.environ, **wrong_clock(ahead)}
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


def answer(process: subprocess.Popen[str]) -> Any:
    """Return what the script has printed."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_only_the_wall_clock_is_wrong_and_a_killed_process_leaves_no_shared_memory(ahead: float) -> None:
    with run(TIMES, ahead) as process:
        times = answer(process)
        assert times["wall"] == pytest.approx(time.time() + ahead, abs=30)
        assert times["monotonic"] == pytest.approx(time.monotonic(), abs=30)
        assert all(0.04 < times[name] < 30 for name in ("sleep", "wait", "loop"))
        assert not list(SHARED_MEMORY.glob(f"*faketime*_{process.pid}"))


def test_threads_wait_for_the_interpreter_without_a_busy_loop() -> None:
    with run(WAITS, 90) as process:
        # A thread that waits for the interpreter wakes every 5 ms. In a busy loop, it would wake far more often.
        assert answer(process) < 1000
