"""The number of queries of the model store, and query plans that use the indexes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from reliable_cable import models
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError
from reliable_cable.stores.streams.base import YOUNG_TIME, Message
from reliable_cable.stores.streams.model import NAMES_PER_QUERY, ModelStreamStore
from reliable_cable.stores.streams.model_polling import SeenIds
from reliable_cable.stores.streams.model_retention import TRANSIENT_TTL, TRIM_STEP
from tests.stores.conftest import MODEL_STORES, Clock, MakeStore, finish_store_threads, wait_until
from tests.stores.test_streams import append, kept

pytestmark = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)

#: The beginnings of statements that do not count as queries.
FRAME = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "PRAGMA", "SET ")


def queries(alias: str, call: Callable[[], Any]) -> list[str]:
    with CaptureQueriesContext(connections[alias]) as captured:
        call()
    # An append to PostgreSQL may send BEGIN together with its query.
    statements = [query["sql"].removeprefix("BEGIN; ") for query in captured.captured_queries]
    return [statement for statement in statements if not statement.startswith(FRAME)]


def entries(alias: str, stream: str = "a") -> int:
    return models.StreamEntry.objects.using(alias).filter(stream__name=stream).count()


class TestCounts:
    def test_an_append_to_postgresql_takes_one_query(self, store: ModelStreamStore, alias: str) -> None:
        append(store, "1")
        assert len(queries(alias, lambda: append(store, "2"))) == (1 if alias == "postgres" else 3)

    def test_appends_lock_insert_and_move_the_tails(self, store: ModelStreamStore, alias: str) -> None:
        append(store, "1")
        items = [("a", Message("2")), ("a", Message("3"))]
        lock, insert, update = queries(alias, lambda: store.append(items))
        assert lock.startswith("SELECT")
        assert ("FOR UPDATE" in lock) == (alias == "postgres")
        assert insert.startswith("INSERT")
        assert update.startswith("UPDATE")

    def test_a_batch_over_many_streams_takes_as_many_queries(self, store: ModelStreamStore, alias: str) -> None:
        batch = [(f"s{number % 20}", Message(str(number))) for number in range(60)]
        store.append(batch)
        assert len(queries(alias, lambda: store.append(batch))) == 3

    def test_an_idempotency_key_takes_one_more_query(self, store: ModelStreamStore, alias: str) -> None:
        append(store, "1", key="k")
        assert len(queries(alias, lambda: append(store, "2", key="k2"))) == 4
        assert len(queries(alias, lambda: append(store, "3", key="k2"))) == 2

    def test_the_first_message_of_a_stream_also_creates_the_stream(self, store: ModelStreamStore, alias: str) -> None:
        append(store, "the first append of a process also asks the server for its lineage", stream="b")
        assert len(queries(alias, lambda: append(store, "1"))) == (6 if alias == "postgres" else 5)

    def test_inside_a_transaction_there_is_one_insert(self, store: ModelStreamStore, alias: str) -> None:
        def broadcast() -> None:
            store.append_on_commit([("a", Message("1")), ("b", Message("2"))], using=alias)

        append(store, "0")
        append(store, "0", stream="b")
        with transaction.atomic(using=alias):
            (insert,) = queries(alias, broadcast)
            numbering = CaptureQueriesContext(connections[alias])
            numbering.__enter__()
        numbering.__exit__(None, None, None)
        assert insert.startswith("INSERT")
        after = [q["sql"] for q in numbering.captured_queries if not q["sql"].startswith(FRAME)]
        # One query finds the streams. For each stream, five queries lock its row, read the outbox, insert the entry,
        # update the stream's tail, and delete the outbox row.
        assert len(after) == 1 + 2 * 5

    def test_reading(self, store: ModelStreamStore, alias: str) -> None:
        append(store, *"123")
        assert len(queries(alias, lambda: store.read("a", after=1, limit=10))) == 2
        assert len(queries(alias, lambda: store.read("a", after=3, limit=10))) == 1
        assert len(queries(alias, lambda: store.position("a"))) == 1
        assert len(queries(alias, lambda: store.offset_since("a", 5))) == 2

    def test_an_idle_poll_takes_three_queries_for_any_number_of_streams(
        self, store: ModelStreamStore, alias: str
    ) -> None:
        names = [f"s{number}" for number in range(NAMES_PER_QUERY)]
        store.append([(name, Message("1")) for name in names])
        seen = SeenIds()
        assert len(queries(alias, lambda: store.poll(names, seen))) == 3
        assert len(queries(alias, lambda: store.poll([*names, "one more"], seen))) == 4

    def test_transient_messages_take_one_more_query_and_are_read_once(self, make_store: MakeStore, alias: str) -> None:
        here, there = make_store(), make_store()
        seen = SeenIds()
        here.poll(["a"], seen)
        assert len(queries(alias, lambda: there.publish_transient("a", Message("1")))) == 1
        assert len(queries(alias, lambda: here.poll(["a"], seen))) == 4
        assert len(queries(alias, lambda: here.poll(["a"], seen))) == 3


class TestPlans:
    @pytest.fixture
    def full(self, make_store: MakeStore, alias: str, clock: Clock) -> ModelStreamStore:
        """A store with so many rows that the planner prefers an index."""
        store: ModelStreamStore = make_store(history_size=10_000)
        for _ in range(20):
            store.append([(f"s{number % 50}", Message('"x"', idempotency_key="")) for number in range(500)])
            clock.advance(1)
        with connections[alias].cursor() as cursor:
            cursor.execute("ANALYZE")
        return store

    def plans(self, alias: str, call: Callable[[], Any]) -> list[str]:
        explain = "EXPLAIN" if connections[alias].vendor == "postgresql" else "EXPLAIN QUERY PLAN"
        plans = []
        for sql in queries(alias, call):
            with connections[alias].cursor() as cursor:
                cursor.execute(f"{explain} {sql}")
                plans.append("\n".join(str(row[-1]) for row in cursor.fetchall()))
        return plans

    def test_no_read_scans_the_entries(self, full: ModelStreamStore, alias: str, clock: Clock) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: full.read("s7", after=random.randrange(200), limit=10),
            lambda: full.offset_since("s7", clock.now - 5),
            lambda: full.append([("s7", Message("1", idempotency_key="k"))]),
        ]
        for call in calls:
            for plan in self.plans(alias, call):
                assert "Seq Scan on reliable_cable_streamentry" not in plan
                assert "SCAN reliable_cable_streamentry" not in plan
                assert "SCAN U0" not in plan

    def test_a_poll_skips_transient_messages_that_it_has_seen(
        self, make_store: MakeStore, alias: str, clock: Clock
    ) -> None:
        rows = models.TransientEntry.objects.using(alias)
        rows.bulk_create(models.TransientEntry(name="a", data="1", origin="", created=clock.now) for _ in range(5000))
        with connections[alias].cursor() as cursor:
            cursor.execute("ANALYZE")
        newest = rows.latest("pk")
        seen = SeenIds()
        seen.horizon, seen.newest = newest.pk, newest.created
        (plan,) = [
            plan for plan in self.plans(alias, lambda: make_store().poll(["a"], seen)) if "transiententry" in plan
        ]
        assert "SCAN" not in plan.upper().replace("INDEX SCAN", "").replace("BITMAP HEAP SCAN", "")

    def test_the_index_skips_expired_entries(self, full: ModelStreamStore, alias: str, clock: Clock) -> None:
        state, page = self.plans(alias, lambda: full.read("s7", after=0, limit=10))
        assert "reliable_cable_entry_time" in state
        assert "offset" in page
        assert "Sort" not in page
        assert "TEMP B-TREE" not in page
        since, _ = self.plans(alias, lambda: full.offset_since("s7", clock.now - 5))
        assert since.count("reliable_cable_entry_time") == 2

    def test_the_index_skips_expired_entries_by_the_servers_clock(self, full: ModelStreamStore, alias: str) -> None:
        store = ModelStreamStore(CableSettings(database=alias))
        store.position("the first read of a process also asks the server for its lineage")
        state, *_ = self.plans(alias, lambda: store.read("s7", after=0, limit=10))
        assert "reliable_cable_entry_time" in state
        assert "Seq Scan on reliable_cable_streamentry" not in state
        if alias == "postgres":
            assert "created >" in state[state.index("reliable_cable_entry_time") :].partition("Index Cond")[2]


class TestTrimming:
    def test_an_append_trims_in_the_background(self, make_store: MakeStore, alias: str, clock: Clock) -> None:
        store = make_store(history_size=10)
        for number in range(1, TRIM_STEP):
            append(store, str(number))
        clock.advance(YOUNG_TIME)
        assert entries(alias) == TRIM_STEP - 1
        assert len(queries(alias, lambda: append(store, str(TRIM_STEP)))) == (1 if alias == "postgres" else 3)
        wait_until(lambda: entries(alias) == 10)
        assert [offset for offset, _ in kept(store)] == list(range(TRIM_STEP - 9, TRIM_STEP + 1))

    def test_a_burst_of_appends_causes_few_trims_while_all_entries_are_young(
        self, make_store: MakeStore, alias: str
    ) -> None:
        store = make_store(history_size=10)
        with mock.patch.object(store._retention, "trim", wraps=store._retention.trim) as trim:
            for number in range(5 * TRIM_STEP):
                append(store, str(number))
            finish_store_threads()
        assert 1 <= trim.call_count <= 5
        assert entries(alias) == 5 * TRIM_STEP

    def test_larger_streams_are_trimmed_less_often(self, store: ModelStreamStore) -> None:
        trims = sum(store._retention.has_grown("a", 1, tail + 1, tail) for tail in range(100_000))
        assert 50 < trims < 200

    def test_an_expired_stream_is_emptied(self, store: ModelStreamStore, alias: str, clock: Clock) -> None:
        append(store, *"123")
        clock.advance(10_000)
        append(store, "4")
        wait_until(lambda: entries(alias) == 1)

    def test_a_trim_deletes_more_rows_than_one_transaction(
        self, make_store: MakeStore, alias: str, clock: Clock
    ) -> None:
        store = make_store(history_size=10)
        append(store, *map(str, range(2 * TRIM_STEP - 1)))
        clock.advance(YOUNG_TIME)
        with mock.patch("reliable_cable.stores.streams.model_retention.ROWS_PER_TRANSACTION", 7):
            append(store, "1")
            wait_until(lambda: entries(alias) == 10)

    def test_the_next_trim_deletes_what_a_failed_trim_left(
        self, make_store: MakeStore, alias: str, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = make_store(history_size=10)
        with mock.patch.object(store._retention, "_trim", side_effect=StoreError("locked")):
            append(store, *map(str, range(TRIM_STEP)))
            wait_until(lambda: "retried later" in caplog.text)
        append(store, *map(str, range(TRIM_STEP - 1)))
        clock.advance(YOUNG_TIME)
        assert entries(alias) == 2 * TRIM_STEP - 1
        append(store, "1")
        wait_until(lambda: entries(alias) == 10)

    def test_low_and_trimmed_at_change_with_the_deletion(self, make_store: MakeStore, alias: str, clock: Clock) -> None:
        store = make_store(history_size=2)
        for data in "1234":
            append(store, data)
            clock.advance(1)
        clock.advance(YOUNG_TIME)
        assert store.prune(limit=1) == 1
        stream = models.Stream.objects.using(alias).get()
        assert (stream.low, stream.trimmed_at) == (2, clock.now - YOUNG_TIME - 4)
        assert store.prune() == 1
        stream.refresh_from_db()
        assert (stream.low, stream.tail, stream.trimmed_at) == (3, 4, clock.now - YOUNG_TIME - 3)
        assert store.prune() == 0

    def test_pruning_reaches_all_streams_within_its_limit(
        self, make_store: MakeStore, alias: str, clock: Clock
    ) -> None:
        store = make_store(streams={"long:*": {"history_ttl": 10_000}})
        store.append([(f"s{number}", Message("1")) for number in range(20)] + [("long:1", Message("1"))])
        clock.advance(1000)
        with mock.patch("reliable_cable.stores.streams.model_retention.ROWS_PER_TRANSACTION", 6):
            assert [store.prune(limit=8) for _ in range(4)] == [8, 8, 4, 0]
        assert models.StreamEntry.objects.using(alias).get().stream.name == "long:1"

    def test_old_transient_messages_are_deleted(self, store: ModelStreamStore, alias: str, clock: Clock) -> None:
        rows = models.TransientEntry.objects.using(alias)
        store.publish_transient("a", Message("1"))
        store.publish_transient("a", Message("2"))
        finish_store_threads()
        clock.advance(TRANSIENT_TTL + 1)
        assert store.prune(limit=1) == 1
        store.publish_transient("a", Message("3"))
        wait_until(lambda: [row.data for row in rows.all()] == ["3"])
