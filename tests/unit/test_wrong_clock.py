"""`wrong_clock`: only the wall clock of such a process is wrong, and the process leaves no files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import find_faketime, wrong_clock

pytestmark = pytest.mark.skipif(find_faketime() is None, reason="no libfaketime on this machine")

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - libfaketime creates its files here

SCRIPT = """
import asyncio, json, resource, threading, time
def measure(call):
    started = time.monotonic()
    call()
    return time.monotonic() - started
def compute():
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        sum(range(1000))
def count_waits():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before
print(json.dumps({
    "waits": count_waits(),
    "wall": time.time(),
    "monotonic": time.monotonic(),
    "sleep": measure(lambda: time.sleep(0.05)),
    "wait": measure(lambda: threading.Event().wait(0.05)),
    "loop": measure(lambda: asyncio.run(asyncio.sleep(0.05))),
}), flush=True)
input()
"""


@pytest.fixture(params=[90.0, -90.0])
def ahead(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture
def process(ahead: float) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, **wrong_clock(ahead)}
    command = [sys.executable, "-c", SCRIPT]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


def read_times(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    times: dict[str, Any] = json.loads(process.stdout.readline())
    return times


def test_only_the_wall_clock_is_wrong(process: subprocess.Popen[str], ahead: float) -> None:
    times = read_times(process)
    assert times["wall"] == pytest.approx(time.time() + ahead, abs=30)
    assert times["monotonic"] == pytest.approx(time.monotonic(), abs=30)
    assert all(0.04 < times[name] < 30 for name in ("sleep", "wait", "loop"))


def test_threads_wait_for_the_interpreter_without_a_busy_loop(process: subprocess.Popen[str]) -> None:
    # A thread waits 5 ms before it asks the running one to stop.
    assert read_times(process)["waits"] < 1000


def test_a_process_that_is_killed_leaves_no_shared_memory(process: subprocess.Popen[str]) -> None:
    read_times(process)
    assert not list(SHARED_MEMORY.glob(f"*faketime*_{process.pid}"))
