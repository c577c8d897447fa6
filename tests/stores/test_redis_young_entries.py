"""Young entries in Redis, which are kept for followers even beyond the history size."""

from __future__ import annotations

import pytest

from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.redis.client import Call
from reliable_cable.stores.streams import redis as redis_streams
from reliable_cable.stores.streams.base import YOUNG_TIME, Published
from tests.stores.conftest import Clock, MakeStore
from tests.stores.test_redis_streams import alias
from tests.stores.test_streams import append

pytestmark = pytest.mark.redis

__all__ = ["alias"]


class TestYoungEntries:
    TEXT = "x" * 3000

    def test_followers_can_read_the_whole_first_batch_of_a_stream(self, make_store: MakeStore) -> None:
        store = make_store()
        append(store, *[f'"{number} {self.TEXT}"' for number in range(300)])
        page = store.read("a", after=0, limit=1000, following=True)
        assert (page.low, page.tail, [entry.offset for entry in page.entries]) == (1, 300, list(range(1, 301)))
        page = store.read("a", after=0, limit=1000)
        assert (page.low, page.tail, [entry.offset for entry in page.entries]) == (201, 300, list(range(201, 301)))
        assert store.read("a", after=120, limit=10, following=True).entries[0].offset == 121

    def test_old_entries_are_deleted(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_size=10)
        append(store, *map(str, range(100)))
        assert store.prune() == 0
        clock.advance(YOUNG_TIME - 1)
        append(store, *map(str, range(100, 200)))
        assert store.read("a", after=0, limit=0, following=True).low == 1
        clock.advance(1)
        assert store.prune() == 100
        assert store.read("a", after=0, limit=0, following=True).low == 101
        clock.advance(YOUNG_TIME)
        append(store, *map(str, range(16)))
        assert store.read("a", after=0, limit=0, following=True).low == 201

    def test_the_bytes_of_young_entries_are_bounded(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_streams, "YOUNG_SIZE", 50 * 1000)
        store = make_store(history_size=10)
        for start in range(0, 200, 50):
            append(store, *[f'"{"x" * 898}"' for _ in range(start, start + 50)])
        page = store.read("a", after=0, limit=1000, following=True)
        assert page.low == 201 - 10 - 50
        assert store.read("a", after=0, limit=0).low == 191

    def test_a_short_ttl_does_not_delete_young_entries(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_ttl=2)
        append(store, "1")
        clock.advance(5)
        append(store, *map(str, range(2, 40)))
        assert store.read("a", after=0, limit=0).low == 2
        assert store.read("a", after=0, limit=0, following=True).low == 1
        assert store.client.run(Call("PTTL", store.keys("a")[1:2]))[0] > (YOUNG_TIME - 2) * 1000

    def test_idempotency_keys_of_young_entries_do_not_live_longer(self, make_store: MakeStore) -> None:
        store = make_store(history_size=10)
        append(store, "0", key="first")
        append(store, *map(str, range(1, 12)))
        assert append(store, "again", key="first") == [13]

    def test_the_hot_tail_of_a_durable_stream_has_young_entries_too(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_size=10)
        store.push([Published("a", "e", Entry(offset, str(offset))) for offset in range(1, 301)])
        page = store.read("a", after=0, limit=1000, following=True)
        assert (page.epoch, page.low, len(page.entries)) == ("e", 1, 300)
        assert store.read("a", after=0, limit=0).low == 291

    def test_young_entries_of_the_previous_release_are_kept(
        self, make_store: MakeStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store(history_size=10)
        append(store, "1")
        log = store.keys("a")[1]
        for offset in range(2, 41):
            fields = ["d", str(offset), "c", f"{clock():.6f}", "x", "", "u", f"old.{offset}"]
            store.client.run(Call("XADD", [log], [f"{offset}-0", *fields]))
        store.client.run(Call("HSET", store.keys("a")[:1], ["t", 40]))
        append(store, *map(str, range(41, 101)))
        assert store.read("a", after=0, limit=0, following=True).low == 1
        clock.advance(YOUNG_TIME)
        append(store, *map(str, range(101, 201)))
        assert store.read("a", after=0, limit=0, following=True).low == 101
