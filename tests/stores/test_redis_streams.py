"""What the stream store in Redis does beyond what every store does: lost answers, lost data, lost announcements."""

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
from reliable_cable.redis.client import Call, RedisUnavailable
from reliable_cable.streams import redis as redis_streams
from reliable_cable.streams import redis_listener
from reliable_cable.streams.base import YOUNG_TIME, Advanced, Message, Published, StreamEvent
from reliable_cable.streams.redis import RedisStreamStore
from tests.stores.conftest import Clock, MakeStore, until
from tests.stores.test_streams import append, kept
from tests.support.redis import RedisServer, find_binaries

pytestmark = pytest.mark.redis

BINARIES = [pytest.param(binary, id=binary.name) for binary in find_binaries()]


@pytest.fixture(params=BINARIES)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may stop."""
    with RedisServer(tmp_path / "redis", request.param) as server:
        yield server


@pytest.fixture
def alias(redis_server: RedisServer) -> str:
    """A Redis that tests share."""
    return redis_server.binary.name


@pytest.fixture
def make_own(own: RedisServer, made_stores: list[Any]) -> MakeStore:
    """Make stores in `own`, by its own clock."""

    def make(**settings: Any) -> RedisStreamStore:
        store = RedisStreamStore(CableSettings(redis_url=own.url, **settings))
        made_stores.append(store)
        return store

    return make


def lose_answers(store: RedisStreamStore, monkeypatch: pytest.MonkeyPatch, count: int = 1) -> list[Call]:
    """Let Redis do what it is asked to, and lose its answers to the next calls; return what was called."""
    called: list[Call] = []
    run = store.client._run

    def lossy(calls: Any) -> list[Any]:
        called.extend(calls)
        answers = run(calls)
        if len(called) <= count:
            raise RedisUnavailable("the answer was lost", sent=True)
        return answers

    monkeypatch.setattr(store.client, "_run", lossy)
    return called


class TestLostAnswers:
    def test_a_repeated_append_is_recognised(self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
        store = make_store()
        append(store, "0")
        called = lose_answers(store, monkeypatch)
        assert append(store, "1", "2") == [2, 3]
        assert len(called) == 2
        assert kept(store) == [(1, "0"), (2, "1"), (3, "2")]

    def test_also_with_keys_and_over_several_streams(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store()
        append(store, "0", key="old")
        lose_answers(store, monkeypatch, count=2)
        items = [("a", Message("1", idempotency_key="old")), ("b", Message("2", idempotency_key="new"))]
        items += [("a", Message("3")), ("b", Message("4"))]
        assert [position.offset for position in store.append(items)] == [1, 1, 2, 2]
        assert kept(store) == [(1, "0"), (2, "3")]
        assert kept(store, "b") == [(1, "2"), (2, "4")]

    def test_an_append_that_never_reached_redis_is_done_once_it_does(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store()
        run, tries = store.client._run, []

        def unheard(calls: Any) -> list[Any]:
            tries.append(1)
            if len(tries) == 1:
                raise RedisUnavailable("the connection broke", sent=True)
            return list(run(calls))

        monkeypatch.setattr(store.client, "_run", unheard)
        assert append(store, "1") == [1]
        assert kept(store) == [(1, "1")]

    def test_a_first_try_that_comes_after_its_repeat_does_nothing(self, make_store: MakeStore) -> None:
        # A Redis that hung for longer than we wait finds both on two connections, and takes them in any order.
        store = make_store()
        pending = redis_streams._Append(store, [("a", Message("1")), ("b", Message("2"))])
        first = pending.call()
        pending._maybe_done = True
        assert store.client.run(pending.call()) != [b"late"]
        assert store.client.run(first) == [b"late"]
        assert store.client.run(pending.call()) != [b"late"]
        append(store, "3")
        assert kept(store) == [(1, "1"), (2, "3")]
        assert kept(store, "b") == [(1, "2")]

    def test_what_was_trimmed_meanwhile_is_uncertain(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_streams, "YOUNG_SIZE", 0)
        store, other = make_store(history_size=3), make_store(history_size=3)
        run, tries = store.client._run, []

        def overtaken(calls: Any) -> list[Any]:
            tries.append(1)
            answers = run(calls)
            if len(tries) == 1:
                append(other, *map(str, range(50)))
                raise RedisUnavailable("the answer was lost", sent=True)
            return list(answers)

        monkeypatch.setattr(store.client, "_run", overtaken)
        with pytest.raises(BroadcastUncertain, match="idempotency_key"):
            append(store, '"x"')
        assert other.position("a").offset == 51

    @pytest.mark.parametrize("step", [-5, 5, 90])
    @pytest.mark.parametrize("others", [0, 250])
    def test_a_clock_that_steps_meanwhile_stores_nothing_twice(
        self, make_store: MakeStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: float, others: int
    ) -> None:
        store, other = make_store(), make_store()
        append(other, *map(str, range(5)))
        clock.advance(100)
        run, tries = store.client._run, []

        def stepping(calls: Any) -> list[Any]:
            tries.append(1)
            answers = run(calls)
            if len(tries) == 1:
                for number in range(others):
                    append(other, str(number))
                clock.advance(step)
                raise RedisUnavailable("the answer was lost", sent=True)
            return list(answers)

        monkeypatch.setattr(store.client, "_run", stepping)
        assert append(store, '"x"', '"y"') == [6, 7]
        page = other.read("a", after=5, limit=1000, following=True)
        assert [entry.data for entry in page.entries] == ['"x"', '"y"', *map(str, range(others))]

    def test_what_was_trimmed_long_before_leaves_nothing_uncertain(
        self, make_store: MakeStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The history is shorter than what was added since the first try, which never reached Redis.
        store, other = make_store(history_size=3), make_store(history_size=3)
        append(other, *map(str, range(50)))
        clock.advance(YOUNG_TIME)
        append(other, *map(str, range(50, 100)))
        run, tries = store.client._run, []

        def unheard(calls: Any) -> list[Any]:
            tries.append(1)
            if len(tries) == 1:
                append(other, *map(str, range(100, 150)))
                clock.advance(8)
                raise RedisUnavailable("the connection broke", sent=True)
            return list(run(calls))

        monkeypatch.setattr(store.client, "_run", unheard)
        assert append(store, '"x"') == [151]

    def test_an_answer_that_never_comes_is_uncertain_in_the_end(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store()
        monkeypatch.setattr(redis_streams, "RETRY_TIME", 0.2)
        lose_answers(store, monkeypatch, count=1000)
        with pytest.raises(BroadcastUncertain):
            append(store, "1")
        monkeypatch.undo()
        assert kept(store) == [(1, "1")]

    def test_the_async_twin_recognises_too(self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
        async def scenario() -> None:
            store = make_store()
            run, tries = store.client._arun, []

            async def lossy(calls: Any) -> list[Any]:
                tries.append(1)
                answers = await run(calls)
                if len(tries) == 1:
                    raise RedisUnavailable("the answer was lost", sent=True)
                return list(answers)

            monkeypatch.setattr(store.client, "_arun", lossy)
            assert [position.offset for position in await store.aappend([("a", Message("1"))])] == [1]
            assert (await store.aposition("a")).offset == 1
            await store.aclose()

        asyncio.run(scenario())


class TestLostData:
    def test_another_redis_begins_new_epochs_whatever_data_it_has(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        (before,) = store.append([("a", Message("1"))])
        own.restart()
        assert store.read("a", after=0, limit=10).epoch == ""
        assert store.offset_since("a", 0) == 0
        assert store.position("a") == StreamPosition("", 0)
        (after,) = store.append([("a", Message("2"))])
        assert (after.offset, after.epoch != before.epoch) == (1, True)
        assert kept(store) == [(1, "2")]

    def test_an_older_snapshot_never_gives_an_offset_twice_in_one_epoch(
        self, own: RedisServer, make_own: MakeStore
    ) -> None:
        store = make_own()
        append(store, "1")
        snapshot = own.snapshot()
        (before,) = store.append([("a", Message("2"))])
        own.restart_from(snapshot)
        (after,) = store.append([("a", Message("3"))])
        assert after.epoch != before.epoch

    def test_an_emptied_redis_begins_anew(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        (before,) = store.append([("a", Message("1", idempotency_key="k"))])
        own.flushall()
        assert store.position("a") == StreamPosition("", 0)
        (after,) = store.append([("a", Message("2", idempotency_key="k"))])
        assert (after.offset, after.epoch != before.epoch) == (1, True)

    def test_a_log_that_went_without_its_numbering_is_no_history(self, make_store: MakeStore) -> None:
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


class TestYoungEntries:
    TEXT = "x" * 3000

    def test_the_first_batch_of_a_new_stream_is_there_for_who_follows(self, make_store: MakeStore) -> None:
        store = make_store()
        append(store, *[f'"{number} {self.TEXT}"' for number in range(300)])
        page = store.read("a", after=0, limit=1000, following=True)
        assert (page.low, page.tail, [entry.offset for entry in page.entries]) == (1, 300, list(range(1, 301)))
        page = store.read("a", after=0, limit=1000)
        assert (page.low, page.tail, [entry.offset for entry in page.entries]) == (201, 300, list(range(201, 301)))
        assert store.read("a", after=120, limit=10, following=True).entries[0].offset == 121

    def test_they_go_when_they_are_not_young_any_more(self, make_store: MakeStore, clock: Clock) -> None:
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

    def test_they_are_bounded_in_bytes(self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redis_streams, "YOUNG_SIZE", 50 * 1000)
        store = make_store(history_size=10)
        for start in range(0, 200, 50):
            append(store, *[f'"{"x" * 898}"' for _ in range(start, start + 50)])
        page = store.read("a", after=0, limit=1000, following=True)
        assert page.low == 201 - 10 - 50
        assert store.read("a", after=0, limit=0).low == 191

    def test_a_short_time_of_history_is_not_theirs(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_ttl=2)
        append(store, "1")
        clock.advance(5)
        append(store, *map(str, range(2, 40)))
        assert store.read("a", after=0, limit=0).low == 2
        assert store.read("a", after=0, limit=0, following=True).low == 1
        assert store.client.run(Call("PTTL", store.keys("a")[1:2]))[0] > (YOUNG_TIME - 2) * 1000

    def test_idempotency_keys_do_not_live_longer_by_it(self, make_store: MakeStore) -> None:
        store = make_store(history_size=10)
        append(store, "0", key="first")
        append(store, *map(str, range(1, 12)))
        assert append(store, "again", key="first") == [13]

    def test_the_copy_of_a_durable_stream_has_them_too(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_size=10)
        store.push([Published("a", "e", offset, str(offset)) for offset in range(1, 301)])
        page = store.read("a", after=0, limit=1000, following=True)
        assert (page.epoch, page.low, len(page.entries)) == ("e", 1, 300)
        assert store.read("a", after=0, limit=0).low == 291

    def test_entries_of_the_previous_release_stay_while_they_are_young(
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


class TestForget:
    def test_an_epoch_that_is_not_the_streams_any_more_is_not_ended(self, make_store: MakeStore) -> None:
        store = make_store()
        (position,) = store.append([("a", Message("1"))])
        store.forget("a", epoch="another")
        assert store.position("a") == position
        store.forget("a", epoch=position.epoch)
        assert store.position("a") == StreamPosition("", 0)

    async def test_the_async_twin_compares_too(self, make_store: MakeStore) -> None:
        store = make_store()
        (position,) = await store.aappend([("a", Message("1"))])
        await store.aforget("a", epoch="another")
        assert await store.aposition("a") == position
        await store.aforget("a", epoch=position.epoch)
        assert await store.aposition("a") == StreamPosition("", 0)


class TestTime:
    async def test_it_is_the_servers_own(self, make_own: MakeStore, own: RedisServer) -> None:
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

    def test_a_pause_is_waited_for(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        append(store, "1")
        own.pause(0.5)
        assert append(store, "2") == [2]
        assert kept(store) == [(1, "1"), (2, "2")]

    def test_a_silent_redis_costs_a_bounded_time(
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

    def test_a_full_memory_is_told_and_nothing_is_stored(self, own: RedisServer, make_own: MakeStore) -> None:
        store = make_own()
        append(store, "1")
        own.cli("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(BroadcastError, match="maxmemory"):
            append(store, "2")
        own.cli("CONFIG", "SET", "maxmemory", "0")
        assert kept(store) == [(1, "1")]


class TestListener:
    async def test_a_cut_connection_comes_back_and_says_that_something_may_be_missing(
        self, make_own: MakeStore, own: RedisServer
    ) -> None:
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

    async def test_subscribing_while_redis_is_down_is_made_good(self, make_own: MakeStore, own: RedisServer) -> None:
        store = make_own()
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await asyncio.to_thread(own.kill)
        await listener.subscribe("a")
        await asyncio.to_thread(own.start)
        await until(lambda: heard)
        assert heard == [Advanced("a")]
        await listener.close()

    async def test_a_look_at_the_positions_finds_what_was_not_announced(
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

    async def test_a_look_finds_a_tail_that_went_back(self, make_store: MakeStore) -> None:
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

    async def test_a_look_finds_a_stream_that_is_doubted(self, make_store: MakeStore) -> None:
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

    async def test_the_positions_are_looked_at_now_and_then(
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

    async def test_one_subscription_serves_many_and_ends_with_the_last(
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

    def test_memory_is_bounded_by_the_size(self, make_store: MakeStore, clock: Clock) -> None:
        store = make_store(history_size=10)
        append(store, *map(str, range(500)), key="")
        for number in range(100):
            clock.advance(YOUNG_TIME)
            append(store, str(number), key=f"k{number}")
        (log, keys) = store.client.run(Call("XLEN", store.keys("a")[1:2]), Call("HLEN", store.keys("a")[2:]))
        assert log <= 10 + 16
        assert keys <= 10 + 16
