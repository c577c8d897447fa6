"""Tests of background workers: order, retries, dropped items, forks, and the exit of the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest

from reliable_cable.concurrency import background
from reliable_cable.concurrency.background import BackgroundWorker


class Hold:
    """A handler that waits until `go_on` is set, and records each batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, items: Sequence[int]) -> Sequence[int]:
        self.begun.set()
        assert self.go_on.wait(30)
        self.batches.append(list(items))
        return ()


def test_waiting_items_are_handled_in_order_and_in_batches() -> None:
    hold = Hold()
    worker = BackgroundWorker("test", hold, exit_timeout=0, batch_size=4)
    worker.put([0])
    assert hold.begun.wait(30)
    for number in range(1, 7):
        worker.put([number])
    assert not worker.flush(0)
    hold.go_on.set()
    assert worker.flush(30)
    assert hold.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_items_are_retried_before_later_items() -> None:
    seen: list[list[int]] = []

    def handle(items: Sequence[int]) -> Sequence[int]:
        seen.append(list(items))
        if len(seen) == 1:
            worker.put([3])
        return items if len(seen) < 4 else ()

    worker = BackgroundWorker("test", handle, exit_timeout=0)
    worker.put([1, 2])
    assert worker.flush(30)
    assert seen == [[1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3]]


def test_the_oldest_items_beyond_the_limit_are_dropped() -> None:
    hold = Hold()
    worker = BackgroundWorker("test", hold, exit_timeout=0, max_bytes=100, size_of=lambda item: 30)
    worker.put([0])
    assert hold.begun.wait(30)
    worker.put(range(1, 10))
    hold.go_on.set()
    assert worker.flush(30)
    assert hold.batches == [[0], [7, 8, 9]]


def test_an_error_is_logged_and_later_items_are_handled(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []

    def handle(items: Sequence[int]) -> Sequence[int]:
        if items[0] == 1:
            raise RuntimeError("a fault")
        seen.extend(items)
        return ()

    worker = BackgroundWorker("test", handle, exit_timeout=0)
    worker.put([1])
    assert worker.flush(30)
    worker.put([2])
    assert worker.flush(30)
    assert seen == [2]
    assert "a fault" in caplog.text


def test_an_idle_thread_ends_and_a_new_one_handles_later_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "IDLE_TIME", 0.01)
    used: list[threading.Thread] = []

    def handle(items: Sequence[int]) -> Sequence[int]:
        used.append(threading.current_thread())
        return ()

    worker = BackgroundWorker("test", handle, exit_timeout=0)
    for _ in range(2):
        worker.put([1])
        assert worker.flush(30)
        used[-1].join(30)
        assert not used[-1].is_alive()
    assert used[0] is not used[1]


def test_a_forked_child_handles_only_its_own_items() -> None:
    read, write = os.pipe()
    begun, go_on = threading.Event(), threading.Event()

    def handle(items: Sequence[bytes]) -> Sequence[bytes]:
        for item in items:
            if item == b"parent":
                begun.set()
                go_on.wait(30)
            else:
                os.write(write, item)
        return ()

    worker = BackgroundWorker("test", handle, exit_timeout=0)
    worker.put([b"parent"])
    assert begun.wait(30)
    worker.put([b"never "])
    child = os.fork()
    if child == 0:
        worker.put([b"child"])
        os._exit(0 if worker.flush(30) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.read(read, 100) == b"child"
    go_on.set()
    assert worker.flush(30)
    os.close(read)
    os.close(write)


EXIT = """
import threading, time
from reliable_cable.concurrency.background import BackgroundWorker

def slow(items):
    time.sleep(0.2)
    print("handled", *items, flush=True)
    return ()

def again(items):
    return items

worker = BackgroundWorker("slow", slow, exit_timeout=30)
worker.put([1, 2])
def abandoned(items):
    print("abandoned", *items, flush=True)

failing = BackgroundWorker("failing", again, exit_timeout=0.1, on_abandoned=abandoned)
failing.put([3])
"""


def test_the_exit_of_the_interpreter_waits_for_a_limited_time() -> None:
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.splitlines()) == ["abandoned 3", "handled 1 2"]
    assert done.stderr == ""
