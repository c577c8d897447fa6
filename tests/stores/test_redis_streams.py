"""The stream store in Redis: lost responses, lost data and lost announcements."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.redis.client import Call
from reliable_cable.stores.redis.scripts import script_text
from reliable_cable.stores.streams import redis as redis_streams
from reliable_cable.stores.streams import redis_listener
from reliable_cable.stores.streams.base import YOUNG_TIME, Advanced, Message, Published, StreamEvent
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import Clock, MakeStore, until
from tests.stores.test_streams import append, kept
from tests.support.redis import RedisServer, find_binaries

pytestmark = pytest.mark.redis

BINARIES = [pytest.param(binary, id=binary.name) for binary in find_binaries()]


@pytest.fixture(params=BINARIES)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server that the test may stop."""
    with RedisServer(tmp_path / "redis", request.param) as server:
        yield server


@pytest.fixture
def alias(redis_server: RedisServer) -> str:
    """The name of a Redis server that tests share."""
    return redis_server.binary.name


@pytest.fixture
def make_own(own: RedisServer, made_stores: list[Any]) -> MakeStore:
    """Return a function that makes stores in `own` with the clock of Redis."""

    def make(**settings: Any) -> RedisStreamStore:
        store = RedisStreamStore(CableSettings(redis_url=own.url, **settings))
        made_stores.append(store)
        return store

    return make


class TestLostData:
    def test_another_redis_server_begins_new_epochs_with_any_data(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        (before,) = store.append([("a", Message("1"))])
        own.restart()
        assert store.read("a", after=0, limit=10).epoch == ""
        assert store.offset_since("a", 0) is None, "the message of the former epoch is gone"
        assert store.offset_since("a", store.time()) == 0
        assert store.position("a") == StreamPosition("", 0)
        (after,) = store.append([("a", Message("2"))])
        assert (after.offset, after.epoch != before.epoch) == (1, True)
        assert kept(store) == [(1, "2")]

    def test_an_older_snapshot_never_uses_an_offset_twice_in_one_epoch(
        self, own: RedisServer, make_own: MakeStore
    ) -> None:
        store = make_own()
        append(store, "1")
        snapshot = own.snapshot()
        (before,) = store.append([("a", Message("2"))])
        own.restart_from(snapshot)
        (after,) = store.append([("a", Message("3"))])
        assert after.epoch != before.epoch

    def test_messages_from_before_a_restart_may_be_lost_in_every_stream(
        self, own: RedisServer, make_own: MakeStore
    ) -> None:
        store = make_own()
        start = store.time()
        assert store.offset_since("new", start) == 0
        lineage = store.read("new", after=0, limit=0).lineage
        snapshot = own.snapshot()
        store.append([("new", Message("lost"))])
        assert store.read("new", after=0, limit=0).lineage == lineage != ""
        own.restart_from(snapshot)
        assert store.read("new", after=0, limit=0).lineage not in ("", lineage)
        assert store.offset_since("new", start) is None
        after = store.time()
        assert store.offset_since("new", after) == 0
        store.append([("new", Message("first"))])
        assert store.offset_since("new", start) is None
        assert store.offset_since("new", after) == 0

    def test_messages_from_before_a_restart_without_data_may_be_lost(
        self, own: RedisServer, make_own: MakeStore
    ) -> None:
        store = make_own()
        before = store.time()
        store.append([("a", Message("1"))])
        own.restart_empty()
        assert store.offset_since("a", before) is None
        assert store.offset_since("a", store.time()) == 0

    def test_the_first_lineage_begins_after_the_second_in_which_the_server_may_have_started(
        self, redis_server: RedisServer, key_prefix: str
    ) -> None:
        """A server that reports an uptime of 10 s has been running for at least 9 s."""
        seconds, microseconds = redis_server.cli("TIME")
        args = ("run id", "replid", "", "fresh", "", 60, 10)
        assert redis_server.cli("EVAL", script_text("lineage"), 1, key_prefix, *args) == "run id"
        began = float(redis_server.cli("HGET", key_prefix, "began"))
        assert 0 <= began - (int(seconds) + int(microseconds) / 1e6 - 9) < 60

    def test_messages_from_before_the_end_of_all_epochs_may_be_lost(self, make_own: MakeStore) -> None:
        store = make_own()
        before = store.time()
        store.forget_all()
        assert store.offset_since("a", before) is None
        assert store.offset_since("a", store.time()) == 0

    def test_an_emptied_redis_begins_new_epochs(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        (before,) = store.append([("a", Message("1", idempotency_key="k"))])
        own.flushall()
        assert store.position("a") == StreamPosition("", 0)
        (after,) = store.append([("a", Message("2", idempotency_key="k"))])
        assert (after.offset, after.epoch != before.epoch) == (1, True)

    def test_a_stream_can_lose_its_log_or_its_meta_hash(self, make_store: MakeStore) -> None:
        store = make_store()
        append(store, "1", "2", key="")
        meta, log, _ = store.keys("a")
        store.client.run(Call("DEL", [log]))
        page = store.read("a", after=0, limit=10)
        assert (page.tail, page.low, list(page.entries)) == (2, 3, [])
        assert store.offset_since("a", 0) is None
        assert append(store, "3") == [3]
        store.client.run(Call("DEL", [meta]))
        assert append(store, "4") == [1]
        assert kept(store) == [(1, "4")]


class TestForget:
    def test_forget_does_not_end_another_epoch(self, make_store: MakeStore) -> None:
        store = make_store()
        (position,) = store.append([("a", Message("1"))])
        store.forget("a", epoch="another")
        assert store.position("a") == position
        store.forget("a", epoch=position.epoch)
        assert store.position("a").offset == 0

    async def test_the_async_twin_does_not_end_another_epoch(self, make_store: MakeStore) -> None:
        store = make_store()
        (position,) = await store.aappend([("a", Message("1"))])
        await store.aforget("a", epoch="another")
        assert await store.aposition("a") == position
        await store.aforget("a", epoch=position.epoch)
        assert (await store.aposition("a")).offset == 0


class TestTime:
    async def test_the_clock_is_that_of_the_server(self, make_own: MakeStore, own: RedisServer) -> None:
        store = make_own()
        seconds, microseconds = map(int, own.cli("TIME"))
        assert 0 <= store.time() - (seconds + microseconds / 1e6) < 5
        assert 0 <= await store.atime() - store.time() + 5 < 10


class TestOutage:
    def test_a_broadcast_fails_soon_and_works_again(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        append(store, "1")
        own.kill()
        started = time.monotonic()
        with pytest.raises(BroadcastError, match="Redis"):
            append(store, "2")
        with pytest.raises(StoreError):
            store.position("a")
        with pytest.raises(BroadcastError):
            store.publish_transient("a", Message("t"))
        assert time.monotonic() - started < 10
        own.start()
        assert append(store, "3") == [1]

    def test_an_append_waits_while_redis_is_paused(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        append(store, "1")
        own.pause(0.5)
        assert append(store, "2") == [2]
        assert kept(store) == [(1, "1"), (2, "2")]

    def test_an_append_to_a_silent_redis_fails_after_a_bounded_time(
        self, own: RedisServer, make_own: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_streams, "RETRY_TIME", 0.5)
        store = make_own(redis_options={"socket_timeout": 0.2})
        append(store, "1")
        own.pause(5)
        started = time.monotonic()
        with pytest.raises(BroadcastUncertain):
            append(store, "2")
        assert time.monotonic() - started < 4

    def test_an_append_to_a_full_redis_stores_nothing_and_fails(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        append(store, "1")
        own.cli("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BroadcastError, match="maxmemory"):
            append(store, "2")
        own.cli("CONFIG", "SET", "maxmemory", "0")
        assert kept(store) == [(1, "1")]


class TestListener:
    async def test_missed_messages_are_announced_after_a_reconnect(self, make_own: MakeStore, own: RedisServer) -> None:
        store = make_own()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        for stream in ("a", "b"):
            await listener.subscribe(stream)
        await asyncio.to_thread(own.cli, "CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: set(heard) >= {Advanced("a"), Advanced("b")})
        heard.clear()
        await store.aappend([("a", Message("1"))])
        await until(lambda: heard)
        assert [type(event) for event in heard] == [Published]
        await listener.close()

    async def test_a_subscription_during_an_outage_works_later(self, make_own: MakeStore, own: RedisServer) -> None:
        store = make_own()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await asyncio.to_thread(own.kill)
        await listener.subscribe("a")
        await asyncio.to_thread(own.start)
        await until(lambda: heard)
        assert heard == [Advanced("a")]
        await listener.close()

    async def test_a_check_of_the_positions_finds_lost_announcements(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store, silent = make_store(), make_store()
        monkeypatch.setattr(silent, "channel", lambda stream: "nobody hears this")
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await listener.check()
        assert heard == []
        await silent.aappend([("a", Message("1"))])
        await listener.check()
        await listener.check()
        assert heard == [Advanced("a")]
        await store.aappend([("a", Message("2"))])
        await until(lambda: len(heard) == 2)
        await listener.check()
        assert len(heard) == 2, "what was announced is no news"
        await listener.close()

    async def test_a_check_finds_a_tail_that_went_back(self, make_store: MakeStore) -> None:
        store = make_store()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await store.aappend([("a", Message("1")), ("a", Message("2"))])
        await until(lambda: len(heard) == 2)
        await listener.check()
        assert len(heard) == 2
        await store.client.arun(Call("HSET", store.keys("a")[:1], ["t", 1]))
        await listener.check()
        assert heard[2:] == [Advanced("a")]
        await listener.close()

    async def test_a_check_announces_a_doubted_stream(self, make_store: MakeStore) -> None:
        store = make_store()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await store.aappend([("a", Message("1"))])
        await until(lambda: heard)
        listener.doubt("a")
        listener.doubt("nothing")
        await listener.check()
        await listener.check()
        assert heard[1:] == [Advanced("a")]
        await listener.close()

    async def test_the_positions_are_checked_periodically(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_listener, "CHECK_INTERVAL", 0.01)
        store, silent = make_store(), make_store()
        monkeypatch.setattr(silent, "channel", lambda stream: "nobody hears this")
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe("a")
        await silent.aappend([("a", Message("1"))])
        await until(lambda: heard)
        await listener.close()

    async def test_listeners_share_one_subscription_that_ends_with_the_last(
        self, make_store: MakeStore, redis_server: RedisServer
    ) -> None:
        store = make_store()
        channel = store.channel("a")

        async def subscriptions() -> int:
            return int((await asyncio.to_thread(redis_server.cli, "PUBSUB", "NUMSUB", channel))[1])

        first, second = store.listen(lambda event: None), store.listen(lambda event: None)
        await first.subscribe("a")
        await second.subscribe("a")
        assert await subscriptions() == 1
        await first.close()
        assert await subscriptions() == 1
        await second.close()
        assert await subscriptions() == 0
        await second.subscribe("a")
        assert await subscriptions() == 1
        await second.close()


class TestCosts:
    def test_an_append_is_one_round_trip(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        append(store, "1")
        own.cli("CONFIG", "RESETSTAT")
        for number in range(20):
            append(store, str(number))
        stats = own.cli("INFO", "commandstats")
        assert stats["cmdstat_evalsha"]["calls"] == 20
        assert stats["cmdstat_publish"]["calls"] == 20
        assert "cmdstat_eval" not in stats

    def test_the_memory_of_a_stream_is_bounded_by_its_history_size(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_size=10)
        append(store, *map(str, range(500)), key="")
        for number in range(100):
            clock.advance(YOUNG_TIME)
            append(store, str(number), key=f"k{number}")
        (log, keys) = store.client.run(Call("XLEN", store.keys("a")[1:2]), Call("HLEN", store.keys("a")[2:]))
        assert log <= 10 + 16
        assert keys <= 10 + 16
