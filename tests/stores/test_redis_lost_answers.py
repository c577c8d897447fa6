"""Appends to Redis that got no response: the next attempt finds the entries of the earlier one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastUncertain
from reliable_cable.stores.presence.redis import RedisPresenceStore
from reliable_cable.stores.redis.client import Call, RedisUnavailable
from reliable_cable.stores.redis.keys import lineage_key
from reliable_cable.stores.streams import redis as redis_streams
from reliable_cable.stores.streams.base import YOUNG_TIME, Message
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import Clock, MakeStore, single_client
from tests.stores.test_redis_streams import alias
from tests.stores.test_streams import append, kept
from tests.support.redis import RedisServer

pytestmark = pytest.mark.redis

__all__ = ["alias"]


def lose_answers(store: RedisStreamStore, monkeypatch: pytest.MonkeyPatch, count: int = 1) -> list[Call]:
    """Lose the replies to the next `count` calls after Redis has executed them.

    Return a list to which all calls are added, even those whose replies arrive.
    """
    called: list[Call] = []
    client = single_client(store)
    run = client._attempt

    def lossy(calls: Any, **options: Any) -> list[Any]:
        called.extend(calls)
        answers = run(calls, **options)
        if len(called) <= count:
            raise RedisUnavailable("the answer was lost", sent=True)
        return answers

    monkeypatch.setattr(store.client, "_attempt", lossy)
    return called


class TestLostAnswers:
    def test_a_retried_append_stores_nothing_twice(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store()
        append(store, "0")
        called = lose_answers(store, monkeypatch)
        assert append(store, "1", "2") == [2, 3]
        assert len(called) == 2
        assert kept(store) == [(1, "0"), (2, "1"), (3, "2")]

    def test_a_retried_append_with_keys_and_several_streams_stores_nothing_twice(
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

    def test_an_append_that_never_reached_redis_is_retried(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store()
        run, tries = store.client._attempt, []

        def unheard(calls: Any, **options: Any) -> list[Any]:
            tries.append(1)
            if len(tries) == 1:
                raise RedisUnavailable("the connection broke", sent=True)
            return list(run(calls, **options))

        monkeypatch.setattr(store.client, "_attempt", unheard)
        assert append(store, "1") == [1]
        assert kept(store) == [(1, "1")]

    def test_a_retry_begins_another_epoch_if_that_of_the_first_attempt_is_lost(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # An epoch is lost, for example, if Redis fails over to a replica that lacks the entry of the first attempt.
        store, other = make_store(), make_store()
        run, epochs = store.client._attempt, list[str]()

        def losing(calls: Any, **options: Any) -> list[Any]:
            replies = run(calls, **options)
            epochs.append(other.position("a").epoch)
            if len(epochs) == 1:
                other.forget("a")
                raise RedisUnavailable("the answer was lost", sent=True)
            return list(replies)

        monkeypatch.setattr(store.client, "_attempt", losing)
        assert append(store, "1") == [1]
        assert len(set(epochs)) == 2

    def test_a_first_attempt_after_its_retry_does_nothing(self, make_store: MakeStore) -> None:
        # If Redis hangs for longer than the timeout, it later executes both attempts, in either order.
        store = make_store()
        attempt = store._append_attempts([("a", Message("1")), ("b", Message("2"))])
        first = attempt("")
        assert store.client.run(attempt("0.001")) != [b"late"]
        assert store.client.run(first) == [b"late"]
        assert store.client.run(attempt("0.002")) != [b"late"]
        append(store, "3")
        assert kept(store) == [(1, "1"), (2, "3")]
        assert kept(store, "b") == [(1, "2")]

    def test_a_retry_is_uncertain_if_newer_entries_were_trimmed(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_streams, "YOUNG_SIZE", 0)
        store, other = make_store(history_size=3), make_store(history_size=3)
        run, tries = store.client._attempt, []

        def overtaken(calls: Any, **options: Any) -> list[Any]:
            tries.append(1)
            answers = run(calls, **options)
            if len(tries) == 1:
                append(other, *map(str, range(50)))
                raise RedisUnavailable("the answer was lost", sent=True)
            return list(answers)

        monkeypatch.setattr(store.client, "_attempt", overtaken)
        with pytest.raises(BroadcastUncertain, match="idempotency_key"):
            append(store, '"x"')
        assert other.position("a").offset == 51

    @pytest.mark.parametrize("step", [-5, 5, 90])
    @pytest.mark.parametrize("others", [0, 250])
    def test_a_retry_after_a_step_of_the_clock_stores_nothing_twice(
        self, make_store: MakeStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: float, others: int
    ) -> None:
        store, other = make_store(), make_store()
        append(other, *map(str, range(5)))
        clock.advance(100)
        run, tries = store.client._attempt, []

        def stepping(calls: Any, **options: Any) -> list[Any]:
            tries.append(1)
            answers = run(calls, **options)
            if len(tries) == 1:
                if others:
                    append(other, *map(str, range(others)))
                clock.advance(step)
                raise RedisUnavailable("the answer was lost", sent=True)
            return list(answers)

        monkeypatch.setattr(store.client, "_attempt", stepping)
        assert append(store, '"x"', '"y"') == [6, 7]
        page = other.read("a", after=5, limit=1000, following=True)
        assert [entry.data for entry in page.entries] == ['"x"', '"y"', *map(str, range(others))]

    def test_a_retry_is_not_uncertain_if_only_older_entries_were_trimmed(
        self, make_store: MakeStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # More entries than the history size were added after the first attempt, which never reached Redis.
        store, other = make_store(history_size=3), make_store(history_size=3)
        append(other, *map(str, range(50)))
        clock.advance(YOUNG_TIME)
        append(other, *map(str, range(50, 100)))
        run, tries = store.client._attempt, []

        def unheard(calls: Any, **options: Any) -> list[Any]:
            tries.append(1)
            if len(tries) == 1:
                append(other, *map(str, range(100, 150)))
                clock.advance(8)
                raise RedisUnavailable("the connection broke", sent=True)
            return list(run(calls, **options))

        monkeypatch.setattr(store.client, "_attempt", unheard)
        assert append(store, '"x"') == [151]

    def test_an_append_without_any_response_is_uncertain(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store()
        monkeypatch.setattr(redis_streams, "RETRY_TIME", 0.2)
        lose_answers(store, monkeypatch, count=1000)
        with pytest.raises(BroadcastUncertain):
            append(store, "1")
        monkeypatch.undo()
        assert kept(store) == [(1, "1")]

    def test_a_retry_of_the_async_twin_stores_nothing_twice(
        self, make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scenario() -> None:
            store = make_store()
            run, tries = store.client._arun, []

            async def lossy(calls: Any, **options: Any) -> list[Any]:
                tries.append(1)
                answers = await run(calls, **options)
                if len(tries) == 1:
                    raise RedisUnavailable("the answer was lost", sent=True)
                return list(answers)

            monkeypatch.setattr(store.client, "_arun", lossy)
            assert [position.offset for position in await store.aappend([("a", Message("1"))])] == [1]
            assert (await store.aposition("a")).offset == 1
            await store.aclose()

        asyncio.run(scenario())


def test_a_retried_join_begins_another_incarnation_if_that_of_the_first_attempt_is_lost(
    redis_server: RedisServer, key_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = (
        RedisPresenceStore(CableSettings(redis_url=redis_server.url, key_prefix=key_prefix)) for _ in range(2)
    )
    run, incarnations = single_client(store)._attempt, list[str]()

    def losing(calls: Any, **options: Any) -> list[Any]:
        replies = run(calls, **options)
        incarnations.append(other.info("s").incarnation)
        if len(incarnations) == 1:
            redis_server.cli("DEL", *set(redis_server.cli("KEYS", f"{key_prefix}:*")) - {lineage_key(key_prefix)})
            raise RedisUnavailable("the answer was lost", sent=True)
        return list(replies)

    monkeypatch.setattr(store.client, "_attempt", losing)
    assert [event.type for event in store.join("s", "phone", "1")] == ["join"]
    store.close()
    other.close()
    assert len(set(incarnations)) == 2
