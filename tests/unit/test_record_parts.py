"""A database stores a large session record in parts, and only changed parts are written."""

from __future__ import annotations

import tracemalloc
from random import Random

import pytest

from reliable_cable.stores.sessions import record_parts
from reliable_cable.stores.sessions.base import SessionRecord
from reliable_cable.stores.sessions.record_parts import (
    MAX_REMOVED,
    KnownParts,
    PartsChange,
    RecordParts,
    StoredParts,
    join,
)


class Table:
    """The parts of one session, as a database stores them."""

    def __init__(self) -> None:
        self.rows: dict[int, str] = {}
        self.hashes: dict[int, int] | None = None

    def save(self, items: list[str]) -> PartsChange:
        """Write the changed parts, and check that the table then has these items."""
        change = PartsChange.between(self.hashes, items)
        if change.whole:
            self.rows.clear()
        for number in change.removed:
            del self.rows[number]
        self.rows |= change.written
        self.hashes = dict(change.hashes)
        assert [self.rows[number] for number in sorted(self.rows)] == items
        assert list(self.hashes) == sorted(self.rows)
        return change


def test_any_change_of_the_items_gives_the_new_items() -> None:
    random, table, items = Random(1), Table(), [str(number) for number in range(20)]
    for step in range(3000):
        at = random.randrange(len(items) + 1)
        new = [random.choice([f"new {step}", "equal", "equal"]) for _ in range(random.randrange(4))]
        items[at : at + random.randrange(4)] = new
        if step % 50 == 0:
            random.shuffle(items)
        table.save(items)


@pytest.mark.parametrize(
    ("items", "written", "removed"),
    [
        (["a", "b", "c"], 0, 0),
        (["a", "B", "c"], 1, 0),
        (["A", "B", "C"], 3, 0),
        (["a", "b", "c", "d", "e"], 2, 0),
        (["a", "x", "b", "c"], 1, 0),
        (["x", "y", "a", "b", "c"], 2, 0),
        (["a", "c"], 0, 1),
        (["b", "C", "d"], 2, 1),
        ([], 0, 3),
    ],
)
def test_only_changed_parts_are_written(items: list[str], written: int, removed: int) -> None:
    table = Table()
    table.save(["a", "b", "c"])
    change = table.save(items)
    assert (change.whole, len(change.written), len(change.removed)) == (False, written, removed)


def test_all_parts_are_numbered_anew_when_there_is_no_number_between_two() -> None:
    table, items = Table(), ["first", "last"]
    table.save(items)
    inserted = 0
    while not table.save(items := ["first", f"{inserted}", *items[1:]]).whole:
        inserted += 1
    assert inserted == 20
    assert not table.save(["first", "another", *items[1:]]).whole


def test_the_largest_list_is_split() -> None:
    data = {"sids": ["x" * 20] * 3, "subscriptions": [{"state": "y" * 100}], "left_at": 1.5}
    parts = RecordParts.of(SessionRecord({}, 0, data))
    assert parts is not None
    assert parts.items == ('{"state": "%s"}' % ("y" * 100),)
    assert join(parts.head, parts.items) == data
    assert list(join(parts.head, parts.items) or ()) == list(data)
    assert join(parts.head, ()) is None


def test_the_list_that_was_split_before_is_split_again() -> None:
    data = {"small": [1], "large": ["x" * 100], "empty": []}
    for key in ("small", "empty"):
        parts = RecordParts.of(SessionRecord({}, 0, data), key)
        assert parts is not None
        assert parts.list_key == key
        assert join(parts.head, parts.items) == data


@pytest.mark.parametrize("data", [{}, {"text": "x"}, {"sids": []}])
def test_a_record_without_items_is_not_split(data: dict[str, object]) -> None:
    assert RecordParts.of(SessionRecord({}, 0, data)) is None


def test_the_oldest_known_records_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    known, stored = KnownParts(), StoredParts.of(RecordParts("items", "", ()), {1: 1, 2: 2, 3: 3, 4: 4})
    monkeypatch.setattr(record_parts, "MAX_KNOWN_SIZE", 2 * stored.size)
    for sid in ("a", "b", "a", "c"):
        known.add(sid, stored)
    assert [known.get(sid) is not None for sid in "abc"] == [True, False, True]
    known.forget("a")
    known.add("d", stored)
    assert known.get("c") is stored


def test_known_records_take_little_memory_however_large_their_heads_are() -> None:
    known = KnownParts()
    tracemalloc.start()
    try:
        for sid in range(20_000):
            known.add(f"session {sid}", StoredParts.of(RecordParts("items", f"{sid}" * 2000, ("1",)), {1: sid}))
        assert tracemalloc.get_traced_memory()[0] < 1.5 * record_parts.MAX_KNOWN_SIZE
    finally:
        tracemalloc.stop()


def test_all_parts_are_written_if_many_are_removed() -> None:
    """SQLite limits the parameters of a statement, and one statement may delete parts of many records."""
    table, items = Table(), [f"{number}" for number in range(2000)]
    table.save(items)
    assert not table.save(items[MAX_REMOVED:]).whole
    change = table.save(items[-10:])
    assert (change.whole, len(change.written), len(change.removed)) == (True, 10, 0)
