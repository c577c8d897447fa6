"""A background worker handles items in order, retries them, and delays the exit of its process for a limited time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest

from reliable_cable.concurrency import background
from reliable_cable.concurrency.background import BackgroundWorker
from reliable_cable.concurrency.daemon_executor import DaemonExecutor


class BlockedHandler:
    """A handler that waits until `gate` is set, and records each batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.called = threading.Event()
        self.gate = threading.Event()

    def __call__(self, items: Sequence[int]) -> Sequence[int]:
        self.called.set()
        assert self.gate.wait(30)
        self.batches.append(list(items))
        return ()


def test_waiting_items_are_handled_in_order_and_in_batches() -> None:
    handler = BlockedHandler()
    worker = BackgroundWorker("test", handler, exit_timeout=0, batch_size=4)
    worker.put([0])
    assert handler.called.wait(30)
    for number in range(1, 7):
        worker.put([number])
    assert not worker.flush(0)
    handler.gate.set()
    assert worker.flush(30)
    assert handler.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_items_are_retried_before_later_items() -> None:
    handled: list[list[int]] = []

    def handle(items: Sequence[int]) -> Sequence[int]:
        handled.append(list(items))
        if len(handled) == 1:
            worker.put([3])
        return items if len(handled) < 4 else ()

    worker = BackgroundWorker("test", handle, exit_timeout=0)
    worker.put([1, 2])
    assert worker.flush(30)
    assert handled == [[1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3]]


def test_the_oldest_items_beyond_the_limit_are_dropped() -> None:
    handler = BlockedHandler()
    worker = BackgroundWorker("test", handler, exit_timeout=0, max_bytes=100, size_of=lambda item: 30)
    worker.put([0])
    assert handler.called.wait(30)
    worker.put(range(1, 10))
    handler.gate.set()
    assert worker.flush(30)
    assert handler.batches == [[0], [7, 8, 9]]


def test_an_error_is_logged_and_later_items_are_handled(caplog: pytest.LogCaptureFixture) -> None:
    handled: list[int] = []

    def handle(items: Sequence[int]) -> Sequence[int]:
        if items[0] == 1:
            raise RuntimeError("a bug")
        handled.extend(items)
        return ()

    worker = BackgroundWorker("test", handle, exit_timeout=0)
    worker.put([1])
    assert worker.flush(30)
    worker.put([2])
    assert worker.flush(30)
    assert handled == [2]
    assert "a bug" in caplog.text


def test_an_idle_thread_ends_and_a_new_one_handles_later_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "IDLE_TIME", 0.01)
    threads: list[threading.Thread] = []

    def handle(items: Sequence[int]) -> Sequence[int]:
        threads.append(threading.current_thread())
        return ()

    worker = BackgroundWorker("test", handle, exit_timeout=0)
    for _ in range(2):
        worker.put([1])
        assert worker.flush(30)
        threads[-1].join(30)
        assert not threads[-1].is_alive()
    assert threads[0] is not threads[1]


def test_items_are_abandoned_if_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(DaemonExecutor, "submit", refuse)
    abandoned: list[int] = []
    worker = BackgroundWorker("late", BlockedHandler(), exit_timeout=30, on_abandoned=abandoned.extend)
    worker.put([1, 2])
    assert abandoned == [1, 2]
    assert worker.flush(0)


def test_a_forked_child_handles_only_its_own_items() -> None:
    read, write = os.pipe()
    called, gate = threading.Event(), threading.Event()

    def handle(items: Sequence[bytes]) -> Sequence[bytes]:
        for item in items:
            if item == b"parent":
                called.set()
                gate.wait(30)
            else:
                os.write(write, item)
        return ()

    worker = BackgroundWorker("test", handle, exit_timeout=0)
    worker.put([b"parent"])
    assert called.wait(30)
    worker.put([b"never "])
    child = os.fork()
    if child == 0:
        worker.put([b"child"])
        os._exit(0 if worker.flush(30) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.read(read, 100) == b"child"
    gate.set()
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

def retry_all(items):
    return items

worker = BackgroundWorker("slow", slow, exit_timeout=30)
worker.put([1, 2])
def abandoned(items):
    print("abandoned", *items, flush=True)

failing = BackgroundWorker("failing", retry_all, exit_timeout=0.1, on_abandoned=abandoned)
failing.put([3])
"""


def test_the_exit_of_the_interpreter_waits_for_a_limited_time() -> None:
    result = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(result.stdout.splitlines()) == ["abandoned 3", "handled 1 2"]
    assert result.stderr == ""
