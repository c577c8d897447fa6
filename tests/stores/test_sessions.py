"""The behaviour of all session stores (stores/sessions/base.py), and the number of statements and round trips."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any
from unittest import mock

import pytest
from django.db import OperationalError, connections
from django.db.models import QuerySet

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import StoreError
from reliable_cable.models import Revocation, Session
from reliable_cable.stores.database.server import DatabaseServer
from reliable_cable.stores.redis.client import CALLS_PER_ROUND_TRIP, Call, RedisClient
from reliable_cable.stores.redis.keys import session_key
from reliable_cable.stores.sessions.base import CLOCK_MARGIN, SessionRecord, SessionStore
from reliable_cable.stores.sessions.memory import MemorySessionStore
from reliable_cable.stores.sessions.model import ModelSessionStore
from reliable_cable.stores.sessions.redis import RedisSessionStore
from reliable_cable.stores.streams.base import IDLE_STREAM_TTL
from tests.support.records import load_record
from tests.support.redis import RedisPool

from .conftest import REDIS_STORES, SINGLE_REDIS_STORES, Clock
from .sessions import (
    ALIASES,
    ANN,
    BOB,
    MOMENT,
    THEN,
    TTL,
    alias,
    ann,
    bob,
    clock,
    kind,
    large_record,
    model_store,
    nobody,
    statements,
    store,
)

__all__ = ["alias", "clock", "kind", "store"]


@pytest.mark.django_db(transaction=True, databases="__all__")
class TestEveryStore:
    def test_a_saved_record_can_be_loaded_twice(self, store: SessionStore) -> None:
        store.save({"a": ANN, "b": BOB})
        assert store.load("a", ann) == ANN
        assert store.load("a", ann) == ANN
        assert store.load("b", bob) == BOB

    def test_an_unknown_session_has_no_record(self, store: SessionStore) -> None:
        assert store.load("a", ann) is None

    @pytest.mark.parametrize("sid", ["", "x" * 10_000, "a\x00b", "é", "\ud800", "a\nb"])
    def test_an_invalid_session_id_has_no_record(self, store: SessionStore, sid: str) -> None:
        assert store.load(sid, ann) is None

    def test_save_replaces_a_record(self, store: SessionStore) -> None:
        store.save({"a": ANN})
        store.save({"a": BOB})
        assert store.load("a", bob) == BOB

    def test_every_change_of_a_large_record_is_saved(self, store: SessionStore) -> None:
        random = Random(1)
        items = [f"item {number} {'x' * 200}" for number in range(40)]
        for number in range(60):
            at = random.randrange(len(items) + 1)
            items[at : at + random.randrange(3)] = [f"é {number} {'y' * n}" for n in range(random.randrange(3))]
            lists = {"sids": ["former"][: number % 2], "items": list(items)}
            record = SessionRecord(ann, THEN + number // 20, {**lists, "left_at": number} if number % 7 else lists)
            store.save({"a": record, "b": ANN})
            assert store.load("a", ann) == record
        assert store.load("b", ann) == ANN

    def test_a_record_expires_after_sessions_ttl(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN})
        clock.advance(TTL - MOMENT)
        assert store.load("a", ann) == ANN
        clock.advance(MOMENT)
        assert store.load("a", ann) is None

    def test_save_renews_the_ttl(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN})
        clock.advance(TTL - MOMENT)
        store.save({"a": ANN})
        clock.advance(TTL - MOMENT)
        assert store.load("a", ann) == ANN

    def test_touch_renews_the_ttl(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN, "b": BOB})
        clock.advance(TTL - MOMENT)
        assert store.touch(["a", "unknown"]) == {"unknown"}
        clock.advance(TTL - MOMENT)
        assert store.load("a", ann) == ANN
        assert store.load("b", bob) is None

    def test_touch_does_not_restore_expired_records(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN})
        clock.advance(TTL)
        assert store.touch(["a"]) == {"a"}
        assert store.load("a", ann) is None

    def test_a_deleted_record_is_not_loaded(self, store: SessionStore) -> None:
        store.save({"a": ANN, "b": BOB})
        store.delete(["a", "unknown"])
        assert store.load("a", ann) is None
        assert store.load("b", bob) == BOB

    def test_empty_calls_are_allowed(self, store: SessionStore) -> None:
        store.save({})
        assert store.touch([]) == set()
        assert store.revoked([]) == []
        store.delete([])
        assert store.prune() == 0

    def test_records_are_not_shared_with_the_caller(self, store: SessionStore) -> None:
        data: dict[str, Any] = {"ids": [1]}
        store.save({"a": SessionRecord(ann, THEN, data)})
        data["ids"].append(2)
        first = store.load("a", ann)
        assert first is not None
        first.data["ids"].append(3)
        assert store.load("a", ann) == SessionRecord(ann, THEN, {"ids": [1]})

    def test_any_text_that_a_client_can_send_is_kept(self, store: SessionStore) -> None:
        odd = SessionRecord(ann, THEN, {"identifier": 'NUL \x00, half a pair \ud800, "quotes" \\, é, \U0001f600'})
        store.save({"a": odd, "b": BOB})
        assert store.load("a", ann) == odd
        assert store.load("b", bob) == BOB

    def test_data_that_are_not_json_are_an_error_and_nothing_is_saved(self, store: SessionStore) -> None:
        with pytest.raises(TypeError):
            store.save({"b": BOB, "a": SessionRecord(ann, THEN, {"when": object()})})
        assert store.load("b", bob) is None

    async def test_the_async_twins_do_the_same(self, store: SessionStore, clock: Clock) -> None:
        await store.asave({"a": ANN, "b": BOB})
        assert await load_record(store, "a", ann) == ANN
        clock.advance(TTL - MOMENT)
        await store.atouch(["a"])
        clock.advance(MOMENT)
        assert await load_record(store, "b", bob) is None
        assert await store.atouch(["a", "b"]) == {"b"}
        await store.adelete(["a"])
        assert await load_record(store, "a", ann) is None
        assert await store._run_write(store.prune) in (0, 1)  # Redis deletes expired records by itself

    async def test_concurrent_saves_store_all_records(self, store: SessionStore) -> None:
        await asyncio.gather(*(store.asave({f"s{number}": ANN}) for number in range(20)))
        assert [await load_record(store, f"s{number}", ann) for number in range(20)] == [ANN] * 20

    @pytest.mark.parametrize(
        "other", [bob, nobody, {}, {**ann, "tenant": "str:a"}], ids=["another", "nobody", "nothing", "more"]
    )
    def test_a_record_is_loaded_for_the_same_identity_only(self, store: SessionStore, other: dict[str, str]) -> None:
        store.save({"a": ANN})
        assert store.load("a", other) is None
        assert store.load("a", ann) == ANN

    @pytest.mark.parametrize("text", ["NUL \x00", "half a pair \ud800", "x" * 1000, "Zoë"])
    def test_any_text_can_be_an_identifier(self, store: SessionStore, text: str, clock: Clock) -> None:
        odd = {"user": text, "tenant": text}
        store.save({"a": SessionRecord(odd, THEN)})
        assert store.load("a", odd) == SessionRecord(odd, THEN)
        store.revoke({"user": text})
        assert store.load("a", odd) is None

    def test_a_session_without_identifiers_is_stored_too(self, store: SessionStore) -> None:
        store.save({"a": SessionRecord(nobody, THEN)})
        assert store.load("a", nobody) == SessionRecord(nobody, THEN)


@pytest.mark.django_db(transaction=True, databases="__all__")
@pytest.mark.parametrize("kind", ["memory", *ALIASES], indirect=True)
class TestPruning:
    def test_prune_deletes_expired_records_within_its_limit(self, store: SessionStore, clock: Clock) -> None:
        store.save({f"old{number}": ANN for number in range(5)})
        clock.advance(TTL / 2)
        store.save({"young": BOB})
        clock.advance(TTL / 2)
        assert store.prune(limit=3) == 3
        assert store.prune(limit=3) == 2
        assert store.prune(limit=3) == 0
        assert store.load("young", bob) == BOB

    def test_a_touched_record_is_not_pruned(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN, "b": BOB})
        clock.advance(TTL / 2)
        store.touch(["a"])
        clock.advance(TTL / 2)
        assert store.prune() == 1
        assert store.load("a", ann) == ANN


def test_the_memory_store_stores_nothing_without_a_ttl(clock: Clock) -> None:
    store = MemorySessionStore(replace(get_settings(), sessions_ttl=0), clock=clock)
    store.save({"a": ANN})
    clock.advance(-1)
    assert store.load("a", ann) is None


@pytest.mark.django_db(databases="__all__")
class TestModelStore:
    def test_nothing_is_stored_without_a_ttl(self, alias: str, clock: Clock) -> None:
        store = ModelSessionStore(replace(get_settings(), sessions_ttl=0, database=alias), clock=clock)
        store.save({"a": ANN})
        assert not Session.objects.using(alias).exists()

    def test_each_operation_takes_few_statements(self, alias: str, clock: Clock) -> None:
        store = model_store(alias, clock)
        many = {f"s{number}": ANN for number in range(100)}
        calls: list[tuple[Callable[[], object], list[str]]] = [
            (lambda: store.save(many), ["INSERT"]),
            (lambda: store.load("s1", ann), ["SELECT"]),
            (lambda: store.load_many([(sid, ann) for sid in many]), ["SELECT"]),
            (lambda: store.touch(list(many)), ["UPDATE"]),
            (lambda: store.delete(list(many)[:50]), ["DELETE", "DELETE"]),
        ]
        for call, verbs in calls:
            assert [sql.lstrip("(").split()[0] for sql in statements(alias, call)] == verbs

    def test_pruning_takes_few_statements_and_uses_the_index(self, alias: str, clock: Clock) -> None:
        store = model_store(alias, clock)
        store.save({f"s{number}": ANN for number in range(20)})
        clock.advance(TTL)
        pruning = statements(alias, lambda: store.prune(limit=5))
        assert [sql.split()[0] for sql in pruning] == ["SELECT", "DELETE", "SELECT", "DELETE"]
        assert Session.objects.using(alias).count() == 15
        expired = Session.objects.using(alias).filter(expires__lte=clock()).order_by("expires")[:5]
        with connections[alias].cursor() as cursor:
            if connections[alias].vendor == "postgresql":
                # With so few rows, the planner would prefer to read them all.
                cursor.execute("SET LOCAL enable_seqscan = off")
            plan = expired.explain()
        assert "reliable_cable_session_expires" in plan

    def test_revocations_are_pruned_when_all_records_that_they_revoke_have_expired(
        self, alias: str, clock: Clock
    ) -> None:
        store = model_store(alias, clock, handler_threads=0)
        store.revoke(ann)
        clock.advance(TTL + CLOCK_MARGIN / 2)
        store.prune()
        assert Revocation.objects.using(alias).count() == 1
        clock.advance(CLOCK_MARGIN)
        store.prune()
        assert Revocation.objects.using(alias).count() == 0

    def test_a_database_error_is_a_store_error(self, alias: str, clock: Clock) -> None:
        store = model_store(alias, clock)
        failure = OperationalError("database is locked")
        calls: list[tuple[type, str, Callable[[], object], str]] = [
            (QuerySet, "bulk_create", lambda: store.save({"a": ANN}), "saved"),
            (QuerySet, "update", lambda: store.touch(["a"]), "touched"),
            (QuerySet, "delete", lambda: store.delete(["a"]), "deleted"),
            # `revoke` first reads the time. An error of this read is reported like an error of the write.
            (DatabaseServer, "time", lambda: store.revoke(ann), "revoked"),
            (QuerySet, "union", lambda: store.load("a", ann), "read"),
        ]
        for owner, method, call, done in calls:
            with (
                mock.patch.object(owner, method, side_effect=failure),
                pytest.raises(StoreError, match=f"Session records could not be {done}: .*locked"),
            ):
                call()


@pytest.mark.parametrize("kind", SINGLE_REDIS_STORES, indirect=True)
class TestSingleRedis:
    @pytest.fixture
    def trips(self, store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Call, ...]]:
        """The calls of each round trip."""
        trips: list[tuple[Call, ...]] = []
        assert isinstance(store, RedisSessionStore)
        arun = RedisClient.arun

        async def counted(client: RedisClient, *calls: Call, **options: Any) -> Any:
            trips.append(calls)
            return await arun(client, *calls, **options)

        monkeypatch.setattr(RedisClient, "arun", counted)
        return trips

    async def test_each_operation_is_one_round_trip(self, store: SessionStore, trips: list[tuple[Call, ...]]) -> None:
        many = {f"s{number}": ANN for number in range(CALLS_PER_ROUND_TRIP)}
        store.save(many)
        store.load("s1", ann)
        store.touch(list(many))
        store.revoke(ann)
        store.delete(list(many))
        assert len(trips) == 5
        await store.asave(many)
        await load_record(store, "s1", ann)
        await store.atouch(list(many))
        await store.arevoke(ann)
        await store.adelete(list(many))
        assert len(trips) == 10

    def test_a_change_of_a_large_record_writes_the_change(
        self, store: SessionStore, clock: Clock, trips: list[tuple[Call, ...]]
    ) -> None:
        store.save({"a": large_record(0)})
        clock.advance(TTL - MOMENT)
        store.save({"a": large_record(1)})
        clock.advance(TTL - MOMENT)
        assert store.load("a", ann) == large_record(1)
        whole, change = (sum(len(str(argument)) for argument in calls[0].args) for calls in trips[:2])
        assert whole > 200_000
        assert change < 3_000

    def test_few_of_the_texts_that_were_written_are_kept_in_memory(
        self, store: SessionStore, monkeypatch: pytest.MonkeyPatch, trips: list[tuple[Call, ...]]
    ) -> None:
        monkeypatch.setattr("reliable_cable.stores.sessions.record_text.MAX_WRITTEN_SIZE", 500_000)
        for number in range(2):
            for sid in ("a", "b", "c"):
                store.save({sid: large_record(number)})
        store.save({"c": large_record(2)})
        assert [calls[0].name for calls in trips] == ["SET"] * 6 + ["session_change"]

    async def test_many_records_are_sent_in_batches(self, store: SessionStore, trips: list[tuple[Call, ...]]) -> None:
        many = {f"s{number}": ANN for number in range(CALLS_PER_ROUND_TRIP + 1)}
        await store.asave(many)
        assert await store.atouch([*many, "unknown"]) == {"unknown"}
        assert [len(calls) for calls in trips] == [CALLS_PER_ROUND_TRIP, 1, CALLS_PER_ROUND_TRIP, 2]


@pytest.mark.parametrize("kind", REDIS_STORES, indirect=True)
class TestRedisStore:
    def test_a_change_of_a_record_that_redis_has_lost_writes_it_whole(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": large_record(0)})
        clock.advance(TTL)
        store.save({"a": large_record(1)})
        assert store.load("a", ann) == large_record(1)

    def test_a_change_of_a_record_that_another_process_has_written_writes_it_whole(self, store: SessionStore) -> None:
        other = RedisSessionStore(store.settings)
        store.save({"a": large_record(0)})
        other.save({"a": large_record(1)})
        assert store.load("a", ann) == large_record(1)
        store.save({"a": large_record(2)})
        assert store.load("a", ann) == large_record(2)
        store.delete(["a"])
        assert other.load("a", ann) is None
        other.save({"a": large_record(3)})
        assert store.load("a", ann) == large_record(3)

    def test_other_releases_can_read_and_replace_a_large_record(
        self, store: SessionStore, kind: str, key_prefix: str, redis_pool: RedisPool
    ) -> None:
        store.save({"a": large_record(0)})
        store.save({"a": large_record(1)})
        key, server = session_key(key_prefix, "a"), redis_pool.find(kind)
        identity, authenticated, data = json.loads(server.cli("GET", key))
        assert SessionRecord(identity, authenticated, data) == large_record(1)
        server.cli("SET", key, json.dumps([ann, THEN, {**data, "alive": False}]))
        loaded = store.load("a", ann)
        assert loaded is not None
        assert loaded.data["alive"] is False
        store.save({"a": large_record(2)})
        assert store.load("a", ann) == large_record(2)

    def test_every_key_has_a_ttl_and_the_prefix(
        self, store: SessionStore, kind: str, key_prefix: str, redis_pool: RedisPool
    ) -> None:
        store.save({"a": ANN})
        store.revoke(ann)
        server = redis_pool.find(kind)
        keys = set(server.cli("KEYS", f"{key_prefix}:*"))
        assert keys
        records = {key for key in keys if key.endswith(":lineage")}
        assert all(server.cli("TTL", key) > IDLE_STREAM_TTL for key in records)
        keys -= records
        assert len(keys) == 2
        assert all(0 < server.cli("PTTL", key) <= (TTL + CLOCK_MARGIN) * 1000 for key in keys)
