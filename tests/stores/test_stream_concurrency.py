"""Many threads and processes broadcast to the same streams without holes, duplicates or losses."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from reliable_cable import models
from reliable_cable.conf import CableSettings
from reliable_cable.stores.streams.base import Message, StreamStore
from reliable_cable.stores.streams.memory import MemoryStreamStore
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_polling import SeenIds
from tests.stores.conftest import EVERY_STORE, MODEL_STORES, POSTGRES, MakeStore, until, with_own_connection
from tests.support.examples import examples

ROOT = Path(__file__).resolve().parents[2]
THREADS, MESSAGES = 6, examples(20)


def in_threads(*calls: Callable[[], Any]) -> None:
    errors: list[BaseException] = []

    def guarded(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            try:
                call()
            except BaseException as error:
                errors.append(error)

        return run

    threads = [threading.Thread(target=with_own_connection(guarded(call))) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def history(store: StreamStore, stream: str) -> list[Any]:
    """Check that a stream's offsets have no holes, and return its payloads."""
    page = store.read(stream, after=0, limit=100_000)
    assert [entry.offset for entry in page.entries] == list(range(1, page.tail + 1))
    return [json.loads(entry.data) for entry in page.entries]


def assert_complete(payloads: list[Any], writers: int, count: int) -> None:
    """Check that the messages of each writer are stored once and in their order."""
    by_writer: dict[Any, list[int]] = {}
    for writer, number in payloads:
        by_writer.setdefault(writer, []).append(number)
    assert list(by_writer.values()) == [list(range(count))] * writers


@pytest.mark.parametrize("alias", EVERY_STORE, indirect=True)
class TestThreads:
    def test_offsets_have_no_holes_and_no_message_is_lost(self, make_store: MakeStore) -> None:
        store = make_store(history_size=1000)

        def writer(name: int) -> Callable[[], None]:
            def write() -> None:
                for number in range(MESSAGES):
                    store.append([("a", Message(json.dumps([name, number])))])

            return write

        in_threads(*map(writer, range(THREADS)))
        assert_complete(history(store, "a"), THREADS, MESSAGES)

    def test_batches_over_the_same_streams_in_any_order_do_not_deadlock(self, make_store: MakeStore) -> None:
        store = make_store(history_size=1000)

        def writer(name: int) -> Callable[[], None]:
            streams = ["a", "b", "c"] if name % 2 else ["c", "b", "a"]

            def write() -> None:
                for number in range(MESSAGES):
                    store.append_parts([(stream, Message(json.dumps([name, number]))) for stream in streams])

            return write

        in_threads(*map(writer, range(4)))
        for stream in "abc":
            assert_complete(history(store, stream), 4, MESSAGES)

    def test_one_idempotency_key_is_stored_once(self, store: StreamStore) -> None:
        in_threads(*[lambda: store.append([("a", Message("1", idempotency_key="k"))])] * THREADS)
        assert history(store, "a") == [1]

    def test_concurrent_forgets_and_trims_leave_no_holes(self, make_store: MakeStore) -> None:
        store = make_store(history_size=3)
        count = examples(60)
        done = threading.Event()

        def write() -> None:
            for number in range(count):
                store.append([("a", Message(str(number)))])
            done.set()

        def disturb() -> None:
            while not done.is_set():
                store.prune(limit=2)
                store.forget("a")

        def read() -> None:
            while not done.is_set():
                page = store.read("a", after=0, limit=10)
                assert [entry.offset for entry in page.entries] == list(range(page.low, page.tail + 1))

        in_threads(write, disturb, read)
        store.append([("a", Message(str(count)))])
        page = store.read("a", after=0, limit=10)
        assert [int(entry.data) for entry in page.entries] == list(range(count + 1))[-len(page.entries) :]


@pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
class TestOutbox:
    def test_concurrent_numbering_stores_nothing_twice(
        self, make_store: MakeStore, alias: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stores = [make_store(history_size=1000) for _ in range(4)]
        monkeypatch.setattr(ModelStreamStore, "_number_after_commit", lambda self, names: None)
        with transaction.atomic(using=alias):
            stores[0].append_on_commit([("a", Message(json.dumps([0, n]))) for n in range(100)], using=alias)
        in_threads(*[store.number_outbox for store in stores])
        assert_complete(history(stores[0], "a"), 1, 100)
        assert not models.OutboxEntry.objects.using(alias).exists()

    def test_transactions_and_appends_of_many_threads_lose_nothing(self, make_store: MakeStore, alias: str) -> None:
        store = make_store(history_size=1000)

        def writer(name: int) -> Callable[[], None]:
            def write() -> None:
                for number in range(MESSAGES):
                    with transaction.atomic(using=alias):
                        store.append_on_commit([("a", Message(json.dumps([name, number])))], using=alias)

            return write

        def poll() -> None:
            for _ in range(MESSAGES):
                store.number_outbox()

        in_threads(*map(writer, range(4)), poll)
        assert_complete(history(store, "a"), 4, MESSAGES)


@pytest.fixture(params=["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def isolation(request: pytest.FixtureRequest, alias: str) -> Iterator[str]:
    """Set the isolation level of new connections, by a parameter of PostgreSQL instead of Django's option."""
    options = connections[alias].settings_dict["OPTIONS"]
    level = request.param.replace(" ", "\\ ")
    connections[alias].close()
    options["options"] = f"-c default_transaction_isolation={level.lower()}"
    yield request.param
    connections[alias].close()
    del options["options"]


@pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
@pytest.mark.usefixtures("isolation")
class TestIsolationLevels:
    def test_concurrent_broadcasts_and_reads_do_not_fail(self, make_store: MakeStore, alias: str) -> None:
        store = make_store(history_size=1000)
        seen = SeenIds()
        writers = 8

        def writer(name: int) -> Callable[[], None]:
            def write() -> None:
                for number in range(MESSAGES):
                    store.append([("a", Message(json.dumps([name, number])))])

            return write

        def poll() -> None:
            for _ in range(MESSAGES):
                store.poll(["a"], seen)
                store.read("a", after=0, limit=10)

        in_threads(*map(writer, range(writers)), poll)
        assert_complete(history(store, "a"), writers, MESSAGES)


def database_of(alias: str) -> dict[str, Any]:
    """Return the settings of a database, for another process."""
    return {key: value for key, value in connections[alias].settings_dict.items() if key not in ("TEST", "TIME_ZONE")}


def start_worker(alias: str, **options: Any) -> subprocess.Popen[bytes]:
    database = database_of(alias)
    options = {"databases": {"default": database, alias: database}, "alias": alias, **options}
    return subprocess.Popen([sys.executable, "-m", "tests.stores.worker", json.dumps(options)], cwd=ROOT)


@pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
class TestProcesses:
    def test_offsets_have_no_holes_and_no_message_is_lost(self, make_store: MakeStore, alias: str) -> None:
        store = make_store(history_size=100_000)
        workers = [start_worker(alias, streams=["a", "b"], count=15, on_commit=True) for _ in range(3)]
        assert [worker.wait(60) for worker in workers] == [0, 0, 0]
        for stream in "ab":
            assert_complete(history(store, stream), 3, 15)

    async def test_a_listener_announces_all_messages(self, make_store: MakeStore, alias: str) -> None:
        store = make_store(history_size=100_000)
        due = [False]
        listener = store.listen(lambda event: due.append(True))
        await listener.subscribe("a")
        worker = start_worker(alias, streams=["a"], count=30, on_commit=True)
        got: list[int] = []
        while len(got) < 30:
            await until(lambda: due[-1], timeout=30)
            due[:] = [False]
            page = await store.aread("a", after=len(got), limit=1000)
            got += [entry.offset for entry in page.entries]
        await listener.close()
        assert got == list(range(1, 31))
        assert worker.wait(30) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_use_the_event_loops_of_its_parent() -> None:
    store = MemoryStreamStore(CableSettings())
    script_read, script_write = os.pipe()

    async def scenario() -> list[str]:
        heard: list[str] = []
        listener = store.listen(lambda event: heard.append(event.data))  # type: ignore[union-attr]
        await listener.subscribe("a")
        pid = os.fork()
        if pid == 0:
            try:
                store.whisper("a", Message("child"))
                os.write(script_write, b"%d" % len(listener._pending))  # type: ignore[attr-defined]
            finally:
                os._exit(0)
        await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.read(script_read, 10) == b"0"
        store.whisper("a", Message("parent"))
        await until(lambda: heard)
        await listener.close()
        return heard

    try:
        assert asyncio.run(scenario()) == ["parent"]
    finally:
        os.close(script_read)
        os.close(script_write)
