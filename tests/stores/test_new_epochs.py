"""New epochs: after a store has returned to older data, no position is used twice."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections, transaction
from django.test import override_settings

from reliable_cable import models
from reliable_cable.conf import CableSettings
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.stores.streams import model_retention
from reliable_cable.stores.streams.base import Advanced, Message, Published, StreamEvent, StreamStore
from reliable_cable.stores.streams.model import ModelStreamStore
from tests.stores.conftest import MEMORY, MODEL_STORES, Clock, MakeStore, until, with_own_connection
from tests.stores.test_streams import kept
from tests.support.databases import another_database

every_store = pytest.mark.parametrize("alias", [MEMORY, *MODEL_STORES], indirect=True)
model_stores = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)

ROOT = Path(__file__).resolve().parents[2]


def put_back(alias: str, tail: int) -> None:
    """Delete the stream's entries after an offset, as if an older copy of the database had been restored."""
    models.StreamEntry.objects.using(alias).filter(offset__gt=tail).delete()
    models.Stream.objects.using(alias).update(tail=tail)


@every_store
class TestForgettingAnEpoch:
    def test_forget_ends_the_given_epoch(self, store: StreamStore) -> None:
        (before,) = store.append([("a", Message("1"))])
        store.forget("a", epoch=before.epoch)
        page = store.read("a", after=0, limit=10)
        assert page == StreamPage(page.epoch, 0, 1)
        (after,) = store.append([("a", Message("2"))])
        assert after == StreamPosition(page.epoch, 1)
        assert after.epoch != before.epoch

    def test_forget_does_not_end_another_epoch(self, store: StreamStore) -> None:
        (before,) = store.append([("a", Message("1"))])
        store.forget("a", epoch=before.epoch)
        (after,) = store.append([("a", Message("2"))])
        store.forget("a", epoch=before.epoch)
        assert store.position("a") == after
        assert kept(store) == [(1, "2")]

    def test_many_calls_at_once_begin_one_epoch(self, make_store: MakeStore, alias: str) -> None:
        store = make_store()
        (before,) = store.append([("a", Message("1"))])
        stores = [store] * 4 if alias == "memory" else [make_store() for _ in range(4)]
        positions: list[StreamPosition] = []
        ready = threading.Barrier(len(stores))

        def detect_and_append(own: StreamStore) -> None:
            ready.wait(10)
            own.forget("a", epoch=before.epoch)
            positions.extend(own.append([("a", Message("2"))]))

        threads = [threading.Thread(target=with_own_connection(partial(detect_and_append, own))) for own in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(position.offset for position in positions) == [1, 2, 3, 4]
        assert len({position.epoch for position in positions} - {before.epoch}) == 1

    async def test_forget_announces_only_a_change(self, store: StreamStore) -> None:
        (position,) = await store.aappend([("a", Message("1"))])
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await store.aforget("a", epoch="another")
        await store.awhisper("a", Message("2"))
        await until(lambda: heard)
        await store.aforget("a", epoch=position.epoch)
        await until(lambda: Advanced("a") in heard)
        await listener.close()
        assert [type(event).__name__ for event in heard][:2] == ["Transient", "Advanced"]


@model_stores
class TestDatabasesThatWentBack:
    def test_messages_in_the_outbox_are_numbered_in_the_new_epoch(
        self, store: ModelStreamStore, alias: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (before,) = store.append([("a", Message("1"))])
        monkeypatch.setattr(ModelStreamStore, "_number_after_commit", lambda self, names: None)
        with transaction.atomic(using=alias):
            store.append_on_commit([("a", Message("2"))], using=alias)
        store.forget("a", epoch=before.epoch)
        assert kept(store) == []
        store.number_outbox()
        assert kept(store) == [(1, "2")]
        assert store.position("a").epoch != before.epoch

    async def test_a_poll_announces_that_a_tail_went_back(self, make_store: MakeStore, alias: str) -> None:
        store = make_store()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await store.aappend([("a", Message(data)) for data in "12345"])
        await until(lambda: any(isinstance(event, Published) and event.entry.offset == 5 for event in heard))
        heard.clear()
        await store._run(lambda: put_back(alias, 3))
        await until(lambda: Advanced("a") in heard)
        await listener.close()

    def test_servers_of_the_previous_release_can_insert_streams(self, store: ModelStreamStore, alias: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(
                "INSERT INTO reliable_cable_stream (name, epoch, tail, low, tail_at, trimmed_at) "
                "VALUES ('a', 'e', 0, 1, 0, 0)"
            )
        assert [position.offset for position in store.append([("a", Message("1")), ("a", Message("2"))])] == [1, 2]

    def test_a_stream_that_lost_all_its_entries_begins_a_new_epoch(self, store: ModelStreamStore, alias: str) -> None:
        (before,) = store.append([("a", Message("1"))])
        # The database was restored to a time after the commit of the stream's row and before the commit of its entry.
        models.StreamEntry.objects.using(alias).all().delete()
        models.Stream.objects.using(alias).filter(name="a").update(tail=0, tail_at=0, lineage="")
        (after,) = store.append([("a", Message("2"))])
        assert after.offset == 1
        assert after.epoch != before.epoch


@every_store
class TestForgettingAll:
    def test_every_stream_gets_a_new_epoch(self, store: StreamStore) -> None:
        names = [f"s{number}" for number in range(20)]
        before = store.append([(name, Message("1")) for name in names])
        assert store.forget_all() == 20
        empty = [store.position(name) for name in names]
        assert {position.offset for position in empty} == {0}
        after = store.append([(name, Message("2")) for name in names])
        assert after == [StreamPosition(position.epoch, 1) for position in empty]
        assert not {position.epoch for position in before} & {position.epoch for position in after}
        assert store.forget_all() == 20
        # After a restore of the database, even a stream without messages may have lost some.
        forgotten = store.position("s0")
        assert store.forget_all() == 20
        assert store.position("s0") != forgotten

    def test_messages_from_before_may_be_lost(self, store: StreamStore, clock: Clock) -> None:
        before = clock.now
        store.append([("a", Message("1"))])
        clock.advance(1)
        store.forget_all()
        assert store.offset_since("a", before) is None
        assert store.offset_since("a", 1) == 0, "all messages of the epoch, whatever was lost before"
        assert store.offset_since("unknown", before) is None, "a lost message may have been its first one"
        assert store.offset_since("a", clock.now) == 0
        store.append([("a", Message("2"))])
        assert store.offset_since("a", before) is None
        assert store.offset_since("a", clock.now) == 0

    async def test_it_is_announced(self, store: StreamStore) -> None:
        await store.aappend([("a", Message("1"))])
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await store._run(store.forget_all)
        await until(lambda: heard)
        await listener.close()
        assert heard[0] == Advanced("a")


@model_stores
class TestForgettingAllRows:
    def test_no_transaction_deletes_more_than_a_batch(
        self, make_store: MakeStore, alias: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model_retention, "ROWS_PER_TRANSACTION", 10)
        store = make_store(history_size=1000)
        store.append([("large", Message("1"))] * 35)
        store.append([(f"small{number}", Message("1")) for number in range(12)])
        counts = [models.StreamEntry.objects.using(alias).count()]
        write = store._database.write

        def counted(call: Any) -> Any:
            result = write(call)
            counts.append(models.StreamEntry.objects.using(alias).count())
            return result

        monkeypatch.setattr(store._database, "write", counted)
        assert store.forget_all() == 13
        assert counts[-1] == 0
        assert max(before - after for before, after in pairwise(counts)) <= 10
        assert set(models.Stream.objects.using(alias).values_list("tail", flat=True)) == {0}


def doctor(*arguments: str, **settings: Any) -> str:
    """Return the output of `cable_doctor`."""
    out = io.StringIO()
    with override_settings(RELIABLE_CABLE=settings):
        call_command("cable_doctor", *arguments, stdout=out, no_color=True)
    return out.getvalue()


@pytest.mark.django_db(transaction=True)
def test_the_doctor_ends_all_epochs_when_asked() -> None:
    store = ModelStreamStore(CableSettings())
    (before,) = store.append([("a", Message("1"))])
    assert "Epochs ended" not in doctor(ENGINE="database")
    assert store.position("a") == before
    said = doctor("--new-epochs", ENGINE="database")
    assert "Epochs ended: 1." in said
    assert "Nothing is wrong." in said
    assert store.position("a").offset == 0
    store.close()


# -- databases for these tests only -----------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path, django_db_blocker: Any) -> Iterator[Path]:
    """The path of an SQLite database with the alias `file`."""
    path = tmp_path / "db.sqlite3"
    with django_db_blocker.unblock(), another_database("file", NAME=str(path)):
        yield path


def start_detector(path: Path, epoch: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.stores.epoch_worker", str(path), "a", epoch],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_that_find_a_restored_sqlite_file_begin_one_epoch(file: Path, tmp_path: Path) -> None:
    store = ModelStreamStore(CableSettings(database="file"))
    store.append([("a", Message(str(number))) for number in range(40)])
    connections["file"].close()
    shutil.copy(file, tmp_path / "backup")
    (*_, before) = store.append([("a", Message(str(number))) for number in range(10)])
    connections["file"].close()
    shutil.copy(tmp_path / "backup", file)
    assert store.position("a") == StreamPosition(before.epoch, 40)
    workers = [start_detector(file, before.epoch) for _ in range(2)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    answers = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        answers.append(json.loads(worker.communicate(timeout=60)[0]))
    assert sorted(offset for _, offset in answers) == [1, 2]
    (epoch,) = {epoch for epoch, _ in answers}
    assert epoch != before.epoch
    store.close()
