"""The behaviour of all stream stores (stores/streams/base.py)."""

from __future__ import annotations

import asyncio

import pytest

from reliable_cable.exceptions import BroadcastError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import StreamPage
from reliable_cable.stores.streams.base import IDLE_STREAM_TTL, Message, StreamStore
from tests.stores.conftest import DURABLE_ON_CLUSTER, EVERY_STORE, Clock, MakeStore, with_own_connection

pytestmark = pytest.mark.parametrize("alias", [*EVERY_STORE, DURABLE_ON_CLUSTER], indirect=True)

SIZE, TTL = 100, 300.0


def append(store: StreamStore, *data: str, stream: str = "a", key: str = "") -> list[int]:
    return [position.offset for position in store.append([(stream, Message(d, idempotency_key=key)) for d in data])]


def on_commit(store: StreamStore, *data: str, stream: str = "a", key: str = "") -> None:
    """Append messages if the open transaction on the store's database commits."""
    store.append_on_commit([(stream, Message(d, idempotency_key=key)) for d in data], using=store.settings.database)


def kept(store: StreamStore, stream: str = "a", after: int = 0, limit: int = 1000) -> list[tuple[int, str]]:
    return [(entry.offset, entry.data) for entry in store.read(stream, after=after, limit=limit).entries]


class TestAppending:
    def test_offsets_start_at_1_and_have_no_holes(self, store: StreamStore) -> None:
        assert append(store, '"x"') == [1]
        assert append(store, '"y"', '"z"') == [2, 3]
        assert kept(store) == [(1, '"x"'), (2, '"y"'), (3, '"z"')]

    def test_every_stream_has_its_own_offsets_and_epoch(self, store: StreamStore) -> None:
        a, b, again = store.append_parts([("a", Message("1")), ("b", Message("2")), ("a", Message("3"))])
        assert (a.offset, b.offset, again.offset) == (1, 1, 2)
        assert a.epoch == again.epoch != b.epoch
        assert a.epoch

    def test_an_empty_append_is_allowed(self, store: StreamStore) -> None:
        assert store.append([]) == []

    def test_messages_are_read_unchanged(self, store: StreamStore) -> None:
        data = '{"text":"\\u0000 żółw 🐢 \\" %s"}'
        store.append([("a:{ü} %", Message(data, exclude="sid"))])
        (entry,) = store.read("a:{ü} %", after=0, limit=1).entries
        assert (entry.offset, entry.data, entry.exclude) == (1, data, "sid")

    def test_an_append_to_a_stream_without_history_stores_nothing(self, make_store: MakeStore) -> None:
        store = make_store(streams={"cursor:*": {"history_size": 0}})
        with pytest.raises(BroadcastError, match="cursor:1"):
            store.append([("a", Message("1")), ("cursor:1", Message("2"))])
        assert store.position("a") == StreamPosition("", 0)

    def test_a_batch_of_many_messages_is_stored_in_order(self, store: StreamStore) -> None:
        positions = store.append_parts([(f"s{n % 3}", Message(str(n))) for n in range(1500)])
        assert [p.offset for p in positions] == [n // 3 + 1 for n in range(1500)]
        assert [offset for offset, _ in kept(store, "s2")] == list(range(401, 501))


class TestIdempotency:
    def test_a_repeated_key_stores_nothing_and_returns_the_first_position(self, store: StreamStore) -> None:
        assert append(store, "1", key="k") == [1]
        assert append(store, "2") == [2]
        assert append(store, "3", key="k") == [1]
        assert kept(store) == [(1, "1"), (2, "2")]

    def test_a_repeated_key_in_one_batch_is_stored_once(self, store: StreamStore) -> None:
        assert append(store, "1", "2", key="k") == [1, 1]
        assert kept(store) == [(1, "1")]

    def test_keys_apply_to_their_stream_only(self, store: StreamStore) -> None:
        assert append(store, "1", key="k") == [1]
        assert append(store, "2", key="k", stream="b") == [1]
        assert kept(store, "b") == [(1, "2")]

    def test_a_key_is_forgotten_with_its_expired_entry(self, store: StreamStore, clock: Clock) -> None:
        append(store, "1", key="k")
        clock.advance(TTL)
        assert append(store, "2", key="k") == [2]
        assert append(store, "3", key="k") == [2]

    def test_a_key_is_forgotten_with_an_entry_beyond_the_history_size(self, make_store: MakeStore) -> None:
        store = make_store(history_size=2)
        append(store, "1", key="k")
        append(store, "2", "3")
        assert append(store, "4", key="k") == [4]


class TestReading:
    def test_a_stream_that_does_not_exist_has_no_epoch(self, store: StreamStore) -> None:
        assert store.read("a", after=0, limit=10) == StreamPage("", 0, 1)
        assert store.position("a") == StreamPosition("", 0)
        assert store.offset_since("a", 0) == 0

    def test_reads_begin_after_an_offset_and_end_at_a_limit(self, store: StreamStore) -> None:
        append(store, *"12345")
        assert kept(store, after=1, limit=2) == [(2, "2"), (3, "3")]
        assert kept(store, after=5) == []
        assert kept(store, after=10**30) == []
        assert kept(store, after=-1, limit=1) == [(1, "1")]
        assert kept(store, limit=0) == []

    @pytest.mark.parametrize("following", [False, True])
    def test_a_read_ends_after_the_entry_that_exceeds_a_size(self, store: StreamStore, following: bool) -> None:
        append(store, *["x" * 1000] * 3, "y")

        def offsets(after: int, limit: int, max_size: int) -> list[int]:
            page = store.read("a", after=after, limit=limit, max_size=max_size, following=following)
            assert (page.tail, page.low) == (4, 1)
            assert page.is_last == (not page.entries or page.entries[-1].offset == 4)
            return [entry.offset for entry in page.entries]

        assert offsets(after=0, limit=10, max_size=0) == [1]
        assert offsets(after=0, limit=10, max_size=1500) == [1, 2]
        assert offsets(after=1, limit=10, max_size=1500) == [2, 3]
        assert offsets(after=2, limit=10, max_size=1500) == [3, 4]
        assert offsets(after=0, limit=2, max_size=10_000) == [1, 2]
        assert offsets(after=4, limit=10, max_size=10_000) == []
        assert offsets(after=0, limit=0, max_size=10_000) == []
        assert offsets(after=0, limit=10, max_size=10_000) == [1, 2, 3, 4]

    def test_a_read_returns_the_state_of_the_stream(self, store: StreamStore) -> None:
        (position,) = store.append([("a", Message("1"))])
        page = store.read("a", after=0, limit=0)
        assert (page.epoch, page.tail, page.low) == (position.epoch, 1, 1)
        assert store.position("a") == position


class TestKeeping:
    def test_the_newest_entries_are_kept_up_to_the_history_size(self, make_store: MakeStore) -> None:
        store = make_store(history_size=3, streams={"big:*": {"history_size": 4}})
        append(store, *"12345")
        append(store, *"12345", stream="big:1")
        assert kept(store) == [(3, "3"), (4, "4"), (5, "5")]
        assert store.read("a", after=0, limit=0).low == 3
        assert store.read("big:1", after=0, limit=0).low == 2

    def test_expired_entries_are_not_returned_but_the_epoch_and_tail_stay(
        self, store: StreamStore, clock: Clock
    ) -> None:
        append(store, "1")
        clock.advance(TTL / 2)
        (position,) = store.append([("a", Message("2"))])
        clock.advance(TTL / 2)
        assert kept(store) == [(2, "2")]
        assert store.read("a", after=0, limit=1).low == 2
        clock.advance(TTL / 2)
        assert kept(store) == []
        assert store.read("a", after=0, limit=1) == StreamPage(position.epoch, 2, 3)
        assert append(store, "3") == [3]
        assert kept(store) == [(3, "3")]

    def test_prune_does_not_change_the_results_of_reads(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_size=5)
        append(store, *"123")
        clock.advance(TTL / 2)
        append(store, *"4567890")
        append(store, "1", stream="b")
        clock.advance(TTL / 2)
        before = [store.read(name, after=0, limit=100) for name in ("a", "b")]
        while store.prune(limit=2):
            pass
        assert [store.read(name, after=0, limit=100) for name in ("a", "b")] == before
        assert [entry.offset for entry in before[0].entries] == [6, 7, 8, 9, 10]

    def test_times_never_decrease_if_the_clock_goes_back(self, store: StreamStore, clock: Clock) -> None:
        append(store, "1")
        clock.advance(-50)
        append(store, "2")
        clock.advance(50)
        assert store.offset_since("a", clock.now) == 0
        clock.advance(TTL)
        assert kept(store) == []

    def test_an_idle_streams_epoch_is_kept_for_30_days(self, store: StreamStore, clock: Clock) -> None:
        (position,) = store.append([("a", Message("1"))])
        clock.advance(IDLE_STREAM_TTL - 1)
        while store.prune():
            pass
        assert store.position("a") == position
        clock.advance(1)
        assert store.prune() == 1
        assert store.position("a") == StreamPosition("", 0)

    def test_each_stream_is_kept_for_its_own_time_after_its_newest_message(
        self, make_store: MakeStore, clock: Clock
    ) -> None:
        store = make_store(history_ttl=60, streams={"answer:*": {"history_meta_ttl": 600}})
        names = ["room", *(f"answer:{number}" for number in range(5))]
        store.append_parts([(name, Message("1")) for name in names])
        clock.advance(599)
        while store.prune(limit=2):
            pass
        assert all(store.position(name).offset == 1 for name in names)
        clock.advance(1)
        while store.prune(limit=2):
            pass
        assert [store.position(name).offset for name in names] == [1, 0, 0, 0, 0, 0]


class TestSince:
    def test_the_offset_before_the_first_message_of_that_time(self, store: StreamStore, clock: Clock) -> None:
        start = clock.now
        for data in "123":
            append(store, data)
            clock.advance(10)
        assert store.offset_since("a", 0) == 0
        assert store.offset_since("a", start) == 0
        assert store.offset_since("a", start + 1) == 1
        assert store.offset_since("a", start + 10) == 1
        assert store.offset_since("a", start + 20) == 2
        assert store.offset_since("a", start + 21) == 3

    def test_messages_of_one_time_are_all_included(self, store: StreamStore, clock: Clock) -> None:
        append(store, "1")
        clock.advance(1)
        append(store, "2", "3")
        assert store.offset_since("a", clock.now) == 1

    def test_the_result_is_none_if_some_messages_have_expired(self, store: StreamStore, clock: Clock) -> None:
        start = clock.now
        append(store, "1")
        clock.advance(10)
        append(store, "2")
        clock.advance(TTL - 10)
        for _ in range(2):
            assert store.offset_since("a", start) is None
            assert store.offset_since("a", start + 1) == 1
            store.prune()

    def test_the_result_is_none_if_some_messages_exceed_the_history_size(
        self, make_store: MakeStore, clock: Clock
    ) -> None:
        store = make_store(history_size=2)
        start = clock.now
        for data in "1234":
            append(store, data)
            clock.advance(1)
        for _ in range(2):
            assert store.offset_since("a", start) is None
            assert store.offset_since("a", start + 1) is None
            assert store.offset_since("a", start + 2) == 2
            store.prune()

    def test_after_everything_expired_only_later_times_are_complete(self, store: StreamStore, clock: Clock) -> None:
        append(store, "1")
        made = clock.now
        clock.advance(TTL * 2)
        for _ in range(2):
            assert store.offset_since("a", made) is None
            assert store.offset_since("a", made + 1) == 1
            store.prune()

    def test_a_deleted_stream_may_have_had_messages_before_its_time_to_live(
        self, make_store: MakeStore, clock: Clock
    ) -> None:
        store = make_store(history_ttl=60, history_meta_ttl=600)
        start = clock.now
        append(store, "1")
        clock.advance(600)
        while store.prune():
            pass
        assert store.position("a") == StreamPosition("", 0)
        assert store.offset_since("a", start - 1) is None
        assert store.offset_since("a", start + 1) == 0


class TestPositions:
    async def test_the_positions_of_many_streams(self, store: StreamStore) -> None:
        names = [f"s{number}" for number in range(1, 1001)]
        expected = await store.aappend_parts([(name, Message("1")) for name in names[::100]])
        positions = await store.apositions(names)
        assert positions[::100] == expected
        assert set(positions) == {StreamPosition("", 0), *expected}
        assert await store.apositions([]) == []


class TestForgetting:
    def test_the_next_message_begins_a_new_epoch(self, store: StreamStore) -> None:
        (before,) = store.append([("a", Message("1", idempotency_key="k"))])
        store.forget("a")
        page = store.read("a", after=0, limit=10)
        assert page == StreamPage(page.epoch, 0, 1)
        (after,) = store.append([("a", Message("2", idempotency_key="k"))])
        assert after == StreamPosition(page.epoch, 1)
        assert after.epoch != before.epoch
        assert kept(store) == [(1, "2")]

    def test_a_stream_that_does_not_exist_can_be_forgotten(self, store: StreamStore) -> None:
        store.forget("a")

    def test_other_streams_keep_their_history(self, store: StreamStore) -> None:
        append(store, "1", stream="b")
        store.forget("a")
        assert kept(store, "b") == [(1, "1")]


class TestTwins:
    async def test_the_async_twins_do_the_same(self, store: StreamStore, clock: Clock) -> None:
        (position,) = await store.aappend([("a", Message("1"))])
        assert await store.aposition("a") == position
        page = await store.aread("a", after=0, limit=10)
        assert [entry.data for entry in page.entries] == ["1"]
        assert await store.aoffset_since("a", clock.now) == 0
        clock.advance(TTL)
        assert await asyncio.to_thread(with_own_connection(store.prune)) == 1
        await store.apublish_transient("a", Message("2"))
        await store.awhisper("a", Message("3"))
        await store.aforget("a")
        forgotten = await store.aposition("a")
        assert forgotten.offset == 0
        assert forgotten.epoch not in ("", position.epoch)
