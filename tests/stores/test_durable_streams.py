"""Durable streams: the tables are authoritative, and a loss of Redis loses no message."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from django.db import transaction

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.streams import durable as durable_streams
from reliable_cable.stores.streams.base import Advanced, Message, Published, StreamEvent
from reliable_cable.stores.streams.durable import DurableStreamStore
from reliable_cable.stores.streams.model import ModelStreamStore
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import MakeStore, finish_store_threads, until, with_own_connection
from tests.stores.test_streams import append, kept
from tests.support.redis import RedisServer

pytestmark = [pytest.mark.redis, pytest.mark.django_db(transaction=True)]

STREAMS = {"a": {"durable": True}}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server that the test may stop."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def make(redis: RedisServer, key_prefix: str, made_stores: list[Any], tmp_path: Path) -> Iterator[MakeStore]:
    """Return a function that makes stores with a common database and Redis. Only the stream `a` is durable."""
    if not redis.alive:
        redis.start()

    def make_store(**settings: Any) -> DurableStreamStore:
        settings = {"streams": STREAMS, "poll_interval": 0.01, **settings}
        store = DurableStreamStore(CableSettings(redis_url=redis.url, key_prefix=key_prefix, **settings))
        made_stores.append(store)
        return store

    yield make_store
    for store in made_stores:
        store.close()
    finish_store_threads()


@pytest.fixture
def store(make: MakeStore) -> DurableStreamStore:
    made: DurableStreamStore = make()
    return made


def hot_tail(store: DurableStreamStore) -> tuple[int, list[tuple[int, str]]]:
    """Return the tail and the entries in Redis after this store has pushed its messages."""
    assert store._pusher.flush(30)
    page = RedisStreamStore(store.settings).read("a", after=0, limit=100)
    return page.tail, [(entry.offset, entry.data) for entry in page.entries]


def read_hot(store: DurableStreamStore, after: int, known: StreamPosition) -> StreamPage:
    """Read from the hot tail. Raise an error if the store reads the tables."""
    assert store._pusher.flush(30)
    with mock.patch.object(ModelStreamStore, "read", side_effect=AssertionError("the models were asked")):
        return store.read("a", after=after, limit=10, known=known)


class TestHotTail:
    def test_the_hot_tail_is_read_without_the_tables(self, store: DurableStreamStore) -> None:
        (_, position) = store.append([("a", Message("1")), ("a", Message("2", exclude="sid"))])
        page = read_hot(store, 0, position)
        assert [(entry.offset, entry.data, entry.exclude) for entry in page.entries] == [(1, "1", ""), (2, "2", "sid")]
        assert (page.epoch, page.tail) == (position.epoch, 2)

    def test_a_read_of_the_present_state_uses_the_tables(self, store: DurableStreamStore) -> None:
        store.append([("a", Message("1"))])
        with mock.patch.object(RedisStreamStore, "aread", side_effect=AssertionError("Redis was asked")):
            assert kept(store) == [(1, "1")]
            assert store.position("a").offset == 1

    def test_a_hot_tail_that_lags_or_begins_too_late_or_has_another_epoch_is_not_used(
        self, store: DurableStreamStore
    ) -> None:
        (first,) = store.append([("a", Message("1"))])
        assert store._pusher.flush(30)
        with mock.patch.object(RedisStreamStore, "push"):
            (second,) = store.append([("a", Message("2"))])
            assert store._pusher.flush(30)
        assert hot_tail(store) == (1, [(1, "1")])
        assert len(store.read("a", after=0, limit=10, known=second).entries) == 2, "it is behind"
        assert len(store.read("a", after=2, limit=10, known=first).entries) == 0
        assert store.read("a", after=2, limit=10, known=first).tail == 2, "it is behind the reader"
        store.append([("a", Message("3"))])
        assert hot_tail(store) == (3, [(3, "3")])
        assert len(store.read("a", after=1, limit=10, known=second).entries) == 2, "it begins too late"
        store.forget("a")
        (again,) = store.append([("a", Message("4"))])
        assert store.read("a", after=0, limit=10, known=StreamPosition(first.epoch, 1)).epoch == again.epoch

    async def test_an_async_read_uses_the_hot_tail_too(self, store: DurableStreamStore) -> None:
        (position,) = await store.aappend([("a", Message("1"))])
        assert store._pusher.flush(30)
        with mock.patch.object(ModelStreamStore, "aread", side_effect=AssertionError("the models were asked")):
            page = await store.aread("a", after=0, limit=10, known=position)
        assert [entry.data for entry in page.entries] == ["1"]

    async def test_a_stream_that_is_not_durable_is_read_from_redis(self, store: DurableStreamStore) -> None:
        await store.aappend([("b", Message("1"))])
        for page in (await store.aread("b", after=0, limit=10), store.read("b", after=0, limit=10)):
            assert [entry.data for entry in page.entries] == ["1"]
        assert (await store._model.aposition("b")).offset == 0

    @pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2], [2, 1, 3, 2], [1, 3, 2], [3, 3, 1]])
    def test_pushes_in_any_order_leave_no_hole(self, store: DurableStreamStore, order: list[int]) -> None:
        for offset in order:
            store.push([Published("a", "e", Entry(offset, str(offset)))])
        tail, entries = hot_tail(store)
        assert tail == 3
        offsets = [offset for offset, _ in entries]
        assert offsets == list(range(4 - len(offsets), 4))

    def test_the_size_of_the_hot_tail_is_bounded(self, make: MakeStore) -> None:
        store = make(streams={"a": {"durable": True, "history_size": 5}})
        append(store, *map(str, range(100)))
        tail, entries = hot_tail(store)
        assert (tail, [offset for offset, _ in entries]) == (100, [96, 97, 98, 99, 100])


class TestBothStores:
    def test_forget_all_ends_the_epochs_of_all_streams(self, store: DurableStreamStore) -> None:
        former = store.append([("a", Message("1")), ("b", Message("1"))])
        assert store.forget_all() >= 2
        later = store.append([("a", Message("2")), ("b", Message("2"))])
        assert all(new.epoch != old.epoch for new, old in zip(later, former, strict=True))


class TestLosingRedis:
    def test_while_redis_is_down_messages_are_read_from_the_tables(
        self, redis: RedisServer, store: DurableStreamStore
    ) -> None:
        (position,) = store.append([("a", Message("1"))])
        assert store._pusher.flush(30)
        redis.kill()
        page = store.read("a", after=0, limit=10, known=position)
        assert [entry.data for entry in page.entries] == ["1"]

    async def test_while_redis_is_down_messages_are_read_from_the_tables_asynchronously(
        self, redis: RedisServer, store: DurableStreamStore
    ) -> None:
        (position,) = await store.aappend([("a", Message("1"))])
        assert store._pusher.flush(30)
        redis.kill()
        page = await store.aread("a", after=0, limit=10, known=position)
        assert [entry.data for entry in page.entries] == ["1"]

    def test_an_emptied_redis_loses_no_message(self, redis: RedisServer, store: DurableStreamStore) -> None:
        (before,) = store.append([("a", Message("1"))])
        redis.flushall()
        (after,) = store.append([("a", Message("2"))])
        assert after == StreamPosition(before.epoch, 2)
        assert kept(store) == [(1, "1"), (2, "2")]
        assert [entry.offset for entry in store.read("a", after=0, limit=10, known=after).entries] == [1, 2]

    def test_broadcasts_are_stored_while_redis_is_down(
        self, redis: RedisServer, store: DurableStreamStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        redis.kill()
        # On a busy machine, the appends may take longer than the usual pause, and each pause is logged.
        with mock.patch.object(durable_streams, "REDIS_PAUSE", 60.0):
            for number in range(20):
                append(store, str(number))
            with pytest.raises(BroadcastError):
                append(store, "1", stream="b")
            assert len(kept(store)) == 20
            assert caplog.text.count("without Redis") == 1
        redis.start()

    def test_a_batch_for_both_stores_is_stored_whole_or_is_uncertain(
        self, redis: RedisServer, store: DurableStreamStore
    ) -> None:
        items = [("a", Message("1")), ("b", Message("2")), ("a", Message("3"))]
        assert [position.offset for position in store.append(items)] == [1, 1, 2]
        with (
            mock.patch.object(ModelStreamStore, "append", side_effect=BroadcastError("the database is full")),
            pytest.raises(BroadcastUncertain, match="the database is full"),
        ):
            store.append(items)
        redis.kill()
        with pytest.raises(BroadcastError) as caught:
            store.append(items)
        assert not isinstance(caught.value, BroadcastUncertain)
        assert len(kept(store)) == 2
        redis.start()


class TestTransactions:
    def test_only_messages_of_durable_streams_are_part_of_the_transaction(self, store: DurableStreamStore) -> None:
        items = [("a", Message("1")), ("b", Message("2"))]
        with transaction.atomic():
            store.append_on_commit(items, "default")
            assert (store.position("a").offset, store.position("b").offset) == (0, 0)
        assert (store.position("a").offset, store.position("b").offset) == (1, 1)
        assert hot_tail(store) == (1, [(1, "1")])
        with transaction.atomic():
            store.append_on_commit(items, "default")
            transaction.set_rollback(True)
        assert (store.position("a").offset, store.position("b").offset) == (1, 1)

    async def test_a_crash_between_commit_and_hook_loses_nothing(self, make: MakeStore) -> None:
        store, crashed = make(), make()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")

        def commit() -> None:
            with mock.patch.object(ModelStreamStore, "_number_after_commit"), transaction.atomic():
                crashed.append_on_commit([("a", Message("1"))], "default")

        await asyncio.to_thread(with_own_connection(commit))
        await until(lambda: heard)
        assert [event.stream for event in heard] == ["a"]
        assert (await store.aposition("a")).offset == 1
        await listener.close()


class TestListening:
    async def test_polls_announce_nothing_that_pub_sub_has_announced(
        self, make: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # With such a long interval, no poll can happen between a commit and its announcement.
        monkeypatch.setattr(durable_streams, "SLOW_POLL_INTERVAL", 60)
        store, other = make(), make()
        heard: list[StreamEvent] = []
        listener: Any = store.listen(heard.append)
        await listener.subscribe("a")
        await other.aappend([("a", Message("1"))])
        await until(lambda: len(heard) == 1)
        await store.aappend([("a", Message("2"))])
        await until(lambda: len(heard) == 2)
        polls = mock.Mock(wraps=store._model.poll)
        monkeypatch.setattr(store._model, "poll", polls)
        monkeypatch.setattr(durable_streams, "SLOW_POLL_INTERVAL", 0.01)
        listener._tables._woken.set()
        await until(lambda: polls.call_count >= 3)
        assert [event.entry.offset for event in heard if isinstance(event, Published)] == [1, 2]
        assert len(heard) == 2
        await listener.close()

    async def test_polls_are_slow_while_redis_is_connected(self, store: DurableStreamStore) -> None:
        listener: Any = store.listen(lambda event: None)
        await listener.subscribe("a")
        assert listener._interval() == durable_streams.SLOW_POLL_INTERVAL
        await listener.close()
        assert listener._interval() == 0.01

    async def test_a_fence_waits_for_announced_messages_and_a_doubted_stream_is_announced(
        self, make: MakeStore
    ) -> None:
        store, other = make(), make()
        announced: list[StreamEvent] = []
        listener = store.listen(announced.append)
        await listener.subscribe("a")
        await other.aappend([("a", Message("1"))])
        assert other._pusher.flush(30)
        await listener.fence()
        assert [event.stream for event in announced] == ["a"]
        announced.clear()
        listener.doubt("a")
        await until(lambda: Advanced("a") in announced)
        await listener.close()

    async def test_polls_find_messages_of_other_processes_while_redis_is_down(
        self, redis: RedisServer, make: MakeStore
    ) -> None:
        store, other = make(), make()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await asyncio.to_thread(redis.kill)
        await other.aappend([("a", Message("1"))])
        await until(lambda: Advanced("a") in heard)
        heard.clear()
        await store.aappend([("a", Message("2"))])
        # The store announces a message of its own process directly, as `Published`. Before that, a poll may find the
        # message, and announce `Advanced`.
        await until(lambda: [event for event in heard if isinstance(event, Published)])
        await listener.close()
        await asyncio.to_thread(redis.start)

    async def test_streams_that_are_not_durable_are_not_polled(self, store: DurableStreamStore) -> None:
        listener: Any = store.listen(lambda event: None)
        await listener.subscribe("b")
        assert listener._tables._poller is None
        await listener.close()

    async def test_forget_reaches_all_processes(self, make: MakeStore) -> None:
        store, other = make(), make()
        await store.aappend([("a", Message("1"))])
        assert await asyncio.to_thread(store._pusher.flush, 30)
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await other.aforget("a")
        await until(lambda: heard)
        assert heard[0] == Advanced("a")
        assert hot_tail(store) == (0, [])
        await listener.close()


@pytest.mark.parametrize(("in_redis", "in_the_database"), [(5.0, 7.0), (7.0, 5.0)])
async def test_the_time_is_ahead_of_neither_clock(
    store: DurableStreamStore, monkeypatch: pytest.MonkeyPatch, in_redis: float, in_the_database: float
) -> None:
    # If the time were ahead of one of the clocks, a history since that time could lack messages that were stored with
    # the time of this clock.
    monkeypatch.setattr(store, "_clock", lambda: in_redis)
    monkeypatch.setattr(store._model._server, "_clock", lambda: in_the_database)
    assert await asyncio.to_thread(store.time) == await store.atime() == 5.0
    assert "Redis" in store.clocks()
