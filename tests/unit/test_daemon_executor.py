"""`DaemonExecutor` runs calls in daemon threads, which end when they have been idle for long."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reliable_cable.concurrency import daemon_executor, threads
from reliable_cable.concurrency.daemon_executor import MAX_WAIT, REPORT_INTERVAL, DaemonExecutor

ROOT = Path(__file__).resolve().parents[2]


class Executor(DaemonExecutor):
    """An executor that records the threads that ended."""

    def __init__(self, size: int = 2, idle_time: float = 30.0) -> None:
        self.ended: list[threading.Thread] = []
        #: The waiting times that were reported.
        self.waited: list[float] = []
        super().__init__(
            "test",
            size,
            idle_time=idle_time,
            at_end=lambda: self.ended.append(threading.current_thread()),
            on_wait=self.waited.append,
        )


@pytest.fixture
def make_executor() -> Iterator[Callable[..., Executor]]:
    executors: list[Executor] = []

    def make_executor(**options: Any) -> Executor:
        executors.append(Executor(**options))
        return executors[-1]

    yield make_executor
    for executor in executors:
        assert executor.end_threads(30)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.001)


def idle(executor: Executor, count: int) -> None:
    """Wait until this number of threads is idle. A thread becomes idle shortly after its future is done."""
    wait_until(lambda: len(executor._idle) == count)


MakeExecutor = Callable[..., Executor]


def test_futures_receive_results_and_errors(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    assert executor.submit(lambda a, b: a + b, 1, b=2).result(30) == 3
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 / 0).result(30)


def test_consecutive_jobs_share_one_thread(make_executor: MakeExecutor) -> None:
    executor = make_executor(size=8)
    threads = set()
    for _ in range(20):
        threads.add(executor.submit(threading.current_thread).result(30))
        idle(executor, 1)
    assert len(threads) == 1


def test_the_thread_that_became_idle_last_gets_the_next_job(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    first, second = threading.Event(), threading.Event()

    def job(event: threading.Event) -> threading.Thread:
        assert event.wait(30)
        return threading.current_thread()

    first_job, second_job = executor.submit(job, first), executor.submit(job, second)
    first.set()
    first_job.result(30)
    idle(executor, 1)
    second.set()
    latest = second_job.result(30)
    idle(executor, 2)
    assert executor.submit(threading.current_thread).result(30) is latest


def test_there_are_never_more_threads_than_its_size(make_executor: MakeExecutor) -> None:
    executor = make_executor(size=3)
    barrier = threading.Barrier(3)
    jobs = [executor.submit(lambda: (barrier.wait(30), threading.current_thread())[1]) for _ in range(9)]
    assert len({job.result(30) for job in jobs}) == 3


def test_an_idle_thread_ends(make_executor: MakeExecutor) -> None:
    executor = make_executor(idle_time=0.01)
    thread = executor.submit(threading.current_thread).result(30)
    wait_until(lambda: not thread.is_alive())
    assert executor.ended == [thread]
    assert executor.submit(threading.current_thread).result(30) is not thread


def test_no_job_is_lost_while_threads_end(make_executor: MakeExecutor) -> None:
    executor = make_executor(size=3, idle_time=0.0001)
    for number in range(2000):
        assert executor.submit(lambda n=number: n).result(30) == number
        if number % 7 == 0:
            executor.end_threads(0)


def test_a_job_that_was_cancelled_is_not_run(make_executor: MakeExecutor) -> None:
    executor = make_executor(size=1)
    gate = threading.Event()
    executor.submit(gate.wait, 30)
    ran: list[int] = []
    job: Future[None] = executor.submit(ran.append, 1)
    assert job.cancel()
    gate.set()
    executor.submit(ran.append, 2).result(30)
    assert ran == [2]


def test_threads_that_run_a_job_are_busy(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    gates = [threading.Event() for _ in range(2)]
    for gate in gates:
        executor.submit(gate.wait, 30)
    assert executor.busy_threads() == ["test", "test"]
    gates[0].set()
    idle(executor, 1)
    assert executor.busy_threads() == ["test"]
    gates[1].set()
    idle(executor, 2)
    assert executor.busy_threads() == []


class TestEndThreads:
    def test_idle_threads_end_after_waiting_jobs_were_done(self, make_executor: MakeExecutor) -> None:
        executor = make_executor(size=1)
        gate = threading.Event()
        executor.submit(gate.wait, 30)
        last = executor.submit(threading.current_thread)
        assert not executor.end_threads(0)
        gate.set()
        assert executor.end_threads(30)
        assert last.done()
        assert executor.ended == [last.result()]

    def test_a_thread_that_hangs_is_waited_for_until_the_timeout(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        gate = threading.Event()
        executor.submit(gate.wait, 30)
        assert not executor.end_threads(0.01)
        gate.set()

    def test_a_busy_thread_ends_after_its_job(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        gate = threading.Event()
        thread = executor.submit(lambda: (gate.wait(30), threading.current_thread())[1])
        assert not executor.end_threads(0)
        gate.set()
        wait_until(lambda: not thread.result(30).is_alive())
        assert executor.ended == [thread.result()]

    def test_later_jobs_start_new_threads(self, make_executor: MakeExecutor) -> None:
        executor = make_executor()
        before = executor.submit(threading.current_thread).result(30)
        assert executor.end_threads(30)
        assert executor.submit(threading.current_thread).result(30) is not before


HANG = """
import threading
from django.conf import settings
settings.configure(DATABASES={}, SECRET_KEY="x")
from reliable_cable.concurrency import threads
started = threading.Event()
def hang():
    started.set()
    threading.Event().wait()
threads.submit_store(hang)
started.wait()
"""

FORK = """
import os, threading
from django.conf import settings
settings.configure(DATABASES={}, SECRET_KEY="x")
from reliable_cable.concurrency import threads
stop = threading.Event()
jobs = [threads.submit_store(stop.wait) for _ in range(threads.STORE_THREADS)]
pid = os.fork()
if pid == 0:
    os._exit(threads.submit_store(lambda: 7).result(20))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
stop.set()
"""


POLL = """
import atexit, asyncio, threading
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3"}}, SECRET_KEY="x")
started, failed = threading.Event(), threading.Event()
atexit.register(failed.wait, 0.5)  # runs after the pools' threads have been ended
from reliable_cable.concurrency import threads
async def poll():
    try:
        while True:
            await threads.run_store(int)
            started.set()
    finally:
        failed.set()
threading.Thread(target=asyncio.run, args=(poll(),), daemon=True).start()
started.wait()
"""


def run(script: str) -> str:
    """Run a process to its end, and return what it logged."""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, cwd=ROOT, timeout=60, check=True, stderr=subprocess.PIPE, text=True)
    return done.stderr.strip()


def test_a_process_ends_while_a_job_hangs_and_logs_its_thread() -> None:
    assert run(HANG) == (
        "These threads are still running 2 seconds after the process began to exit, and are ended with it: cable-write."
    )


def test_a_thread_that_another_thread_starts_during_the_exit_is_ended_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[bool] = []

    def end_threads(timeout: float, end: Callable[[float], bool] = threads.end_threads) -> bool:
        """End the threads. During the first call, another thread runs a job in a new thread."""
        results.append(end(timeout))
        if len(results) == 1:
            threads.submit_store(int).result(30)
            return False
        return results[-1]

    monkeypatch.setattr(threads, "end_threads", end_threads)
    threads._end_threads_at_exit()
    assert results == [True, True]
    assert not caplog.text


def test_a_server_in_a_daemon_thread_logs_no_errors_when_the_process_ends() -> None:
    assert run(POLL) == ""


def test_only_daemon_threads_may_submit_calls_while_the_interpreter_shuts_down(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor()

    def refuse(job: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(executor, "_start", refuse)
    for message in ("can't create new thread at interpreter shutdown", "can't start new thread"):
        with pytest.raises(RuntimeError, match=message):
            executor.submit(int)
    message = "can't create new thread at interpreter shutdown"
    futures: list[Future[int]] = []
    thread = threading.Thread(target=lambda: futures.append(executor.submit(int)), daemon=True)
    thread.start()
    thread.join(30)
    assert not futures[0].done()


def test_a_forked_process_has_its_own_threads() -> None:
    assert run(FORK) == ""


class TestWaits:
    """The clock moves only when a test changes it."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
        now = [1000.0]
        clock = SimpleNamespace(monotonic=lambda: now[0])
        monkeypatch.setattr(daemon_executor, "time", clock)
        yield now
        monkeypatch.undo()

    def test_a_call_that_began_late_is_reported(self, make_executor: MakeExecutor, clock: list[float]) -> None:
        executor, end = make_executor(size=1), threading.Event()
        executor.submit(end.wait, 30)
        late = executor.submit(int)
        clock[0] += MAX_WAIT
        end.set()
        assert late.result(30) == 0
        assert executor.waited == [MAX_WAIT]

    def test_calls_that_never_begin_are_reported_at_the_next_call(
        self, make_executor: MakeExecutor, clock: list[float]
    ) -> None:
        executor, end = make_executor(size=1), threading.Event()
        for _ in range(2):
            executor.submit(end.wait, 30)
        clock[0] += MAX_WAIT
        executor.submit(int)
        assert executor.waited == [MAX_WAIT]
        end.set()

    def test_waits_are_reported_once_a_minute(self, make_executor: MakeExecutor, clock: list[float]) -> None:
        executor, end = make_executor(size=1), threading.Event()
        for _ in range(2):
            executor.submit(end.wait, 30)
        for waited in (MAX_WAIT, REPORT_INTERVAL, MAX_WAIT + REPORT_INTERVAL):
            clock[0] = 1000.0 + waited
            executor.submit(int)
        assert executor.waited == [MAX_WAIT, MAX_WAIT + REPORT_INTERVAL]
        end.set()

    def test_short_waits_and_calls_that_find_a_thread_are_not_reported(
        self, make_executor: MakeExecutor, clock: list[float]
    ) -> None:
        executor, end = make_executor(size=2), threading.Event()
        executor.submit(end.wait, 30)
        clock[0] += MAX_WAIT
        assert executor.submit(int).result(30) == 0
        executor.submit(end.wait, 30)
        short = executor.submit(int)
        clock[0] += MAX_WAIT / 2
        end.set()
        assert short.result(30) == 0
        assert executor.waited == []
