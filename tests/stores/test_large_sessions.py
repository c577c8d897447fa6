"""Large session records in a database: a head and its parts (stores/sessions/record_parts.py)."""

from __future__ import annotations

import json
import sqlite3
import threading
from functools import partial
from typing import Any

import pytest
from django.db import connections, transaction

from reliable_cable.models import Session, SessionPart
from reliable_cable.stores.sessions.base import SessionRecord

from .conftest import Clock, with_own_connection
from .sessions import ANN, BOB, THEN, TTL, alias, ann, bob, clock, large_record, model_store, statements

__all__ = ["alias", "clock"]


def changing_record(number: int) -> SessionRecord:
    """Return a large record. The number of its items, and the content of some of them, depend on `number`."""
    items = [{"identifier": f"{at} {'i' * 200}", "state": number if at % 9 == 0 else None} for at in range(20 + number)]
    return SessionRecord(ann, THEN, {"subscriptions": items, "left_at": number})


@pytest.mark.django_db(databases="__all__")
def test_a_change_of_a_large_record_writes_the_change(alias: str, clock: Clock) -> None:
    store = model_store(alias, clock)
    first = statements(alias, lambda: store.save({"a": large_record(0), "b": large_record(0)}))
    change = statements(alias, lambda: store.save({"a": large_record(1), "b": large_record(2), "c": ANN}))
    assert sum(map(len, first)) > 400_000
    assert sum(map(len, change)) < 8_000
    assert [sql.split()[0] for sql in change] == ["SELECT", "INSERT", "INSERT"]
    loaded = store.load_many([("a", ann), ("b", ann), ("c", ann)])
    assert loaded == [large_record(1), large_record(2), ANN]


@pytest.mark.django_db(databases="__all__")
def test_large_records_take_one_select(alias: str, clock: Clock) -> None:
    store = model_store(alias, clock)
    store.save({sid: large_record(0) for sid in "ab"})
    assert len(statements(alias, lambda: store.load_many([("a", ann), ("b", ann)]))) == 1


@pytest.mark.django_db(databases="__all__")
def test_removed_items_are_deleted(alias: str, clock: Clock) -> None:
    store = model_store(alias, clock)
    record = large_record(0)
    store.save({"a": record})
    items = record.data["subscriptions"]
    for kept in (items[1:], items[1:40] + items[41:], [*items[1:40], items[0]], []):
        shorter = SessionRecord(ann, THEN, {**record.data, "subscriptions": kept})
        store.save({"a": shorter})
        assert store.load("a", ann) == shorter
        assert SessionPart.objects.using(alias).count() == len(kept)


@pytest.mark.django_db(databases="__all__")
@pytest.mark.parametrize("how", ["written", "deleted", "expired", "made small"])
def test_a_change_of_a_record_that_another_process_has_changed_writes_it_whole(
    alias: str, clock: Clock, how: str
) -> None:
    store, other = model_store(alias, clock), model_store(alias, clock)
    store.save({"a": large_record(0)})
    if how == "written":
        data = large_record(5).data
        reverse = SessionRecord(ann, THEN, {**data, "subscriptions": data["subscriptions"][::-1]})
        other.save({"a": reverse})
        assert store.load("a", ann) == reverse
    elif how == "made small":
        other.save({"a": ANN})
        assert store.load("a", ann) == ANN
    else:
        clock.advance(TTL)
        other.prune() if how == "expired" else other.delete(["a"])
        assert not SessionPart.objects.using(alias).exists()
    store.save({"a": large_record(1)})
    assert store.load("a", ann) == large_record(1)
    assert SessionPart.objects.using(alias).count() == 100


@pytest.mark.django_db(databases="__all__")
def test_the_previous_release_can_replace_a_large_record(alias: str, clock: Clock) -> None:
    store = model_store(alias, clock)
    store.save({"a": large_record(0)})
    store.save({"a": large_record(1)})
    row = Session.objects.using(alias).get()
    # From this row, the previous release restores a session without subscriptions, so that the client subscribes again.
    assert json.loads(row.data)["subscriptions"] == []
    assert json.loads(row.data).items() >= {"sids": [], "alive": True, "left_at": 1}.items()
    row.data = json.dumps(dict(large_record(2).data))
    row.save()
    assert store.load("a", ann) == large_record(2)
    store.save({"a": large_record(3)})
    assert store.load("a", ann) == large_record(3)


@pytest.mark.django_db(databases="__all__")
def test_parts_of_sessions_that_the_previous_release_has_deleted_are_pruned(
    alias: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reliable_cable.stores.sessions.model.ROWS_PER_TRANSACTION", 70)
    store = model_store(alias, clock)
    store.save({sid: large_record(0) for sid in "abc"})
    Session.objects.using(alias).filter(sid__in=["a", "b"]).delete()
    assert store.load("a", ann) is None
    deletes = [sql for sql in statements(alias, store.prune) if sql.startswith('DELETE FROM "reliable_cable_sessionp')]
    assert len(deletes) == 3  # for 200 parts, at most 70 at once
    assert SessionPart.objects.using(alias).count() == 100
    assert store.load("c", ann) == large_record(0)


@pytest.mark.django_db(databases="__all__")
def test_pruning_examines_few_parts_at_once(alias: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reliable_cable.stores.sessions.model.PARTS_PER_SEARCH", 100)
    store = model_store(alias, clock)
    store.save({sid: large_record(0) for sid in "abc"})
    parts = SessionPart.objects.using(alias)
    for deleted, left in (("c", 200), ("a", 100)):  # to find the parts of "a", the search starts again at the beginning
        Session.objects.using(alias).filter(sid=deleted).delete()
        searches = 0
        while parts.count() > left:
            store.prune()
            searches += 1
        assert 1 < searches < 5
    assert store.load("b", ann) == large_record(0)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, databases=["postgres"])
@pytest.mark.parametrize("alias", ["postgres"], indirect=True)
def test_the_parts_of_a_record_that_is_created_during_a_delete_stay(alias: str, clock: Clock) -> None:
    """If they were deleted, the record's head would stay, and later saves would write only what has changed."""
    store, other = model_store(alias, clock), model_store(alias, clock)
    saves: list[threading.Thread] = []

    def save_between(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith('DELETE FROM "reliable_cable_sessionpart"') and not saves:
            save = threading.Thread(target=with_own_connection(partial(store.save, {"a": large_record(0)})))
            save.start()
            save.join()
            saves.append(save)
        return execute(sql, *args)

    with connections[alias].execute_wrapper(save_between):
        other.delete(["a"])
    assert saves
    assert store.load("a", ann) == large_record(0)
    store.save({"a": large_record(1)})
    assert store.load("a", ann) == large_record(1)


@pytest.mark.postgres
@pytest.mark.django_db(databases=["postgres"])
@pytest.mark.parametrize("alias", ["postgres"], indirect=True)
def test_records_are_locked_in_one_order(alias: str, clock: Clock) -> None:
    """After a takeover, two processes may save the same sessions. Without a common order, they could deadlock."""
    store = model_store(alias, clock)
    store.save({"b": large_record(0), "a": ANN})
    lock, insert, _ = statements(alias, lambda: store.save({"b": large_record(1), "a": ANN}))
    assert "'a'" in lock
    assert lock.endswith("ASC FOR UPDATE")
    assert insert.index("'a'") < insert.index("'b'")


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True, databases=["postgres"])
@pytest.mark.parametrize("alias", ["postgres"], indirect=True)
@pytest.mark.parametrize("method", ["touch", "delete"])
def test_a_record_is_locked_after_those_before_it(alias: str, clock: Clock, method: str) -> None:
    """`touch` and `delete` wait for the lock of the first record before they lock the second one.

    Thus a process that has locked the first record can also lock the second one without a deadlock.
    """
    store, other = model_store(alias, clock), model_store(alias, clock)
    for sid in "ba":
        store.save({sid: ANN})  # the row of "b" is inserted before that of "a"
    rows = Session.objects.using(alias).select_for_update(nowait=True)
    call = threading.Thread(target=with_own_connection(partial(getattr(other, method), ["a", "b"])))
    with transaction.atomic(using=alias):
        rows.get(sid="a")
        call.start()
        with connections[alias].cursor() as cursor:
            waiting = False
            while not waiting:
                cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
                (waiting,) = cursor.fetchone()
        rows.get(sid="b")
    call.join()


@pytest.mark.django_db(databases="__all__")
def test_many_sessions_that_become_small_at_once_are_saved(alias: str, clock: Clock) -> None:
    store = model_store(alias, clock)
    items = [{"identifier": f"{at}"} for at in range(2000)]
    sids = [f"{at}" for at in range(3)]
    store.save({sid: SessionRecord(ann, THEN, {"subscriptions": items}) for sid in sids})
    if alias == "default":
        # Most builds of SQLite have ten times this limit.
        connections[alias].connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 3276)
    small = SessionRecord(ann, THEN, {"subscriptions": items[:1]})
    try:
        store.save(dict.fromkeys(sids, small))
    finally:
        if alias == "default":
            connections[alias].connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 250_000)
    assert store.load_many([(sid, ann) for sid in sids]) == [small] * 3
    assert SessionPart.objects.using(alias).count() == 3


@pytest.mark.django_db(databases="__all__")
def test_a_record_without_all_its_parts_is_not_restored(
    alias: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = model_store(alias, clock)
    store.save({"a": large_record(0), "b": BOB})
    SessionPart.objects.using(alias).order_by("number")[:1].get().delete()
    assert store.load_many([("a", ann), ("b", bob)]) == [None, BOB]
    assert "some of its parts are missing" in caplog.text


@pytest.mark.django_db(transaction=True, databases="__all__")
def test_a_large_record_is_always_read_as_one_of_those_that_were_saved(alias: str, clock: Clock) -> None:
    def save(first: int) -> None:
        store = model_store(alias, clock)
        for number in range(first, 40, 2):
            store.save({"a": changing_record(number), "b": ANN})

    store = model_store(alias, clock)
    store.save({"a": changing_record(0)})
    threads = [threading.Thread(target=with_own_connection(partial(save, first))) for first in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        loaded = store.load("a", ann)
        assert loaded is not None
        assert loaded == changing_record(loaded.data["left_at"])
    for thread in threads:
        thread.join()
    assert store.load("a", ann) in (changing_record(38), changing_record(39))
