"""Reads of the model store while the database goes back: a backup is restored, or an older standby takes over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management.color import no_style
from django.db import connections

from reliable_cable import models
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.stores.streams.base import Message, Transient
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.model_polling import MAX_ROW_DELAY, SeenIds
from tests.stores.conftest import MODEL_STORES, Clock, MakeStore, finish_store_threads
from tests.stores.test_streams import append

pytestmark = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)


def between_queries(changes: list[Callable[[], object]]) -> Callable[..., Any]:
    """Return a query wrapper that makes a change after a read of a stream's row, and before the read of its entries.

    Each read calls the first function in `changes`, and then removes it from the list.
    """

    def run(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        if changes and sql.startswith("SELECT") and '"reliable_cable_streamentry"."data"' in sql:
            changes[0]()
            del changes[0]
        return execute(sql, *args)

    return run


@contextmanager
def changing_during_reads(alias: str, *changes: Callable[[], object]) -> Iterator[None]:
    """Change the database during the next reads of this thread: one change in each read."""
    pending = list(changes)
    with connections[alias].execute_wrapper(between_queries(pending)):
        yield
    assert not pending


def go_back(alias: str, tail: int) -> None:
    """Restore the rows of the stream as they were when its newest message had the offset `tail`."""
    models.StreamEntry.objects.using(alias).filter(offset__gt=tail).delete()
    models.Stream.objects.using(alias).update(tail=tail)


def test_a_tail_is_not_combined_with_the_entries_of_an_older_copy(store: ModelStreamStore, alias: str) -> None:
    append(store, *"123")
    epoch = store.position("a").epoch
    with changing_during_reads(alias, lambda: go_back(alias, 1)):
        page = store.read("a", after=1, limit=10)
    assert page == StreamPage(epoch, 1, 1)


def test_a_tail_is_not_combined_with_some_entries_of_an_older_copy(store: ModelStreamStore, alias: str) -> None:
    append(store, *"123")
    epoch = store.position("a").epoch
    with changing_during_reads(alias, lambda: go_back(alias, 2)):
        page = store.read("a", after=0, limit=10)
    assert (page.epoch, page.tail, [entry.offset for entry in page.entries]) == (epoch, 2, [1, 2])


def test_the_older_copy_may_go_back_again_during_the_second_attempt(store: ModelStreamStore, alias: str) -> None:
    append(store, *"123")
    epoch = store.position("a").epoch
    with changing_during_reads(alias, lambda: go_back(alias, 2), lambda: go_back(alias, 1)):
        assert store.read("a", after=1, limit=10) == StreamPage(epoch, 1, 1)


def test_entries_that_somebody_has_deleted_are_missing(store: ModelStreamStore, alias: str) -> None:
    append(store, *"123")
    epoch = store.position("a").epoch
    models.StreamEntry.objects.using(alias).all().delete()
    assert store.read("a", after=1, limit=10) == StreamPage(epoch, 3, 4)


def test_a_stream_that_the_older_copy_lacks_is_not_there(store: ModelStreamStore, alias: str) -> None:
    append(store, *"123")
    with changing_during_reads(alias, lambda: models.Stream.objects.using(alias).all().delete()):
        assert store.read("a", after=1, limit=10) == StreamPage("", 0, 1)


def test_entries_of_another_epoch_are_not_combined_with_the_former_row(store: ModelStreamStore, alias: str) -> None:
    def begin_another_epoch() -> None:
        store.forget("a")
        append(store, *"45")

    append(store, *"123")
    with changing_during_reads(alias, begin_another_epoch):
        page = store.read("a", after=0, limit=10)
    assert (page.epoch, page.tail) == (store.position("a").epoch, 2)
    assert [entry.data for entry in page.entries] == ["4", "5"]


def test_entries_that_were_trimmed_between_the_queries_are_missing(store: ModelStreamStore, alias: str) -> None:
    def trim() -> None:
        models.StreamEntry.objects.using(alias).filter(offset__lte=2).delete()
        models.Stream.objects.using(alias).update(low=3)

    append(store, *"123")
    with changing_during_reads(alias, trim):
        page = store.read("a", after=0, limit=10)
    assert (page.low, [entry.offset for entry in page.entries]) == (3, [3])


def test_transient_messages_are_found_although_their_ids_were_given_before(
    make_store: MakeStore, alias: str, clock: Clock
) -> None:
    here, there = make_store(), make_store()
    seen = SeenIds(clock)
    here.poll(["a"], seen)
    for _ in range(2):
        there.publish_transient("a", Message("before"))
        clock.advance(MAX_ROW_DELAY)
        assert [each.message for each in here.poll(["a"], seen).transients] == [Transient("a", "before")]
    assert seen.horizon > 0
    # The older copy has no rows, and new rows get the same ids again.
    empty_table = connections[alias].ops.sql_flush(no_style(), ["reliable_cable_transiententry"], reset_sequences=True)
    connections[alias].ops.execute_sql_flush(empty_table)
    for _ in range(2):
        there.publish_transient("a", Message("after"))
        assert [each.message for each in here.poll(["a"], seen).transients] == [Transient("a", "after")]
        clock.advance(1)
    finish_store_threads()
