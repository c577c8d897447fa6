"""Revocations in all session stores (stores/sessions/base.py)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from reliable_cable.conf import get_settings
from reliable_cable.hub.revocations import without_revoked
from reliable_cable.identity import CHANNEL, STREAM, condition_key
from reliable_cable.models import Revocation
from reliable_cable.stores.clock import StoreClock
from reliable_cable.stores.redis.keys import revocation_key
from reliable_cable.stores.sessions.base import CLOCK_MARGIN, SessionRecord, SessionStore
from reliable_cable.stores.sessions.memory import MemorySessionStore
from tests.support.records import load_record
from tests.support.redis import RedisPool

from .conftest import Clock
from .sessions import ANN, BOB, MOMENT, THEN, TTL, ann, bob, clock, kind, nobody, server_kind, store, store_on

__all__ = ["clock", "kind", "server_kind", "store", "store_on"]


@pytest.mark.django_db(transaction=True, databases="__all__")
class TestEveryStore:
    def test_a_revoked_record_is_not_loaded(self, store: SessionStore) -> None:
        store.save({"a": ANN, "a2": ANN, "b": BOB})
        assert store.revoke(ann) == THEN
        assert store.load("a", ann) is None
        assert store.load("a2", ann) is None
        assert store.load("b", bob) == BOB

    def test_a_record_that_is_saved_after_its_revocation_is_not_loaded(self, store: SessionStore, clock: Clock) -> None:
        # The process that saves the record may be late, or may not know of the revocation.
        store.revoke(ann)
        clock.advance(10)
        store.save({"a": ANN})
        store.touch(["a"])
        assert store.load("a", ann) is None

    def test_a_record_that_was_authenticated_after_the_revocation_is_loaded(
        self, store: SessionStore, clock: Clock
    ) -> None:
        store.revoke(ann)
        for seconds, void in ((0, True), (CLOCK_MARGIN, True), (CLOCK_MARGIN + 0.1, False)):
            record = SessionRecord(ann, THEN + seconds)
            store.save({"a": record})
            assert store.load("a", ann) == (None if void else record)

    @pytest.mark.parametrize(
        ("condition", "void"),
        [
            ({"user": "u:1"}, True),
            ({"tenant": "t:1"}, True),
            ({"tenant": "t:1", "user": "u:1"}, True),
            ({"user": "u:1", "device": "d:1", "tenant": "t:1"}, True),
            ({"user": "u:2"}, False),
            ({"user": "u:1", "tenant": "t:2"}, False),
            ({"user": "u:1", "role": "r:1"}, False),
            ({"tenant": "u:1"}, False),
        ],
    )
    def test_a_condition_names_some_of_the_identifiers(
        self, store: SessionStore, condition: dict[str, str], void: bool
    ) -> None:
        identity = {"user": "u:1", "tenant": "t:1", "device": "d:1"}
        store.save({"a": SessionRecord(identity, THEN)})
        store.revoke(condition)
        assert (store.load("a", identity) is None) is void
        assert store.revoked([identity, {"user": "u:3"}]) == [THEN if void else 0, 0]

    def test_the_latest_of_several_revocations_counts(self, store: SessionStore, clock: Clock) -> None:
        store.revoke(ann)
        clock.advance(10)
        store.save({"a": SessionRecord(ann, clock())})
        clock.advance(10)
        store.revoke(ann)
        assert store.load("a", ann) is None
        assert store.revoked([bob, ann]) == [0, clock()]

    def test_a_revocation_outlives_all_records_that_it_revokes(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN})
        store.revoke(ann)
        clock.advance(TTL / 2)
        store.prune()
        store.revoke(bob)
        clock.advance(TTL / 2 - MOMENT)
        store.prune()
        store.touch(["a"])
        assert store.load("a", ann) is None

    async def test_revoked_subscriptions_are_left_out_of_records(self, store: SessionStore, clock: Clock) -> None:
        def item(stream: str, made_after: float = 0.0) -> dict[str, Any]:
            identifier = f'{{"channel":"Chat","stream":"{stream}"}}'
            return {"identifier": identifier, "streams": [{"name": stream}], "authorized": THEN + made_after}

        items = [item("chat:1"), item("chat:2"), item("chat:1", CLOCK_MARGIN), item("chat:1", CLOCK_MARGIN + 0.1)]
        record = SessionRecord(ann, THEN, {"subscriptions": items, "left_at": THEN})
        await store.asave({"a": record})
        assert await without_revoked(store, [None, await load_record(store, "a", ann), BOB]) == [None, record, BOB]
        await store.arevoke({**bob, CHANNEL: "Chat"})
        await store.arevoke({**ann, CHANNEL: "News"})
        await store.arevoke({STREAM: "chat:1"})
        (left,) = await without_revoked(store, [await load_record(store, "a", ann)])
        assert left == SessionRecord(ann, THEN, {"subscriptions": [items[1], items[3]], "left_at": THEN})
        clock.advance(10)
        await store.arevoke({**ann, CHANNEL: "Chat"})
        assert await without_revoked(store, [left]) == [
            SessionRecord(ann, THEN, {"subscriptions": [], "left_at": THEN})
        ]

    async def test_the_async_twins_revoke_as_well(self, store: SessionStore) -> None:
        await store.asave({"a": ANN, "b": BOB})
        assert await store.arevoke(ann) == THEN
        assert await store.arevoked([ann, bob, nobody]) == [THEN, 0, 0]
        assert await load_record(store, "a", ann) is None
        assert await load_record(store, "b", bob) == BOB


@pytest.mark.django_db(transaction=True, databases="__all__")
class TestHostsWhoseClocksDiffer:
    """If a server (PostgreSQL or Redis) stores the sessions, only the clock of that server matters."""

    def authenticated(self, store: SessionStore) -> float:
        """Return the time of an authentication that happens now, as the host of `store` estimates it."""
        clock = StoreClock(store, host=store.clock)
        clock.measure()
        return clock.now()

    @pytest.mark.parametrize(("here", "there"), [(0, -5), (0, 60), (-90, 90), (90, -90)])
    def test_a_revocation_revokes_records_that_were_authenticated_before(
        self, store_on: Callable[[float], SessionStore], here: float, there: float
    ) -> None:
        store, other = store_on(here), store_on(there)
        store.save({"a": SessionRecord(ann, self.authenticated(store))})
        at = other.revoke(ann)
        assert store.load("a", ann) is None
        assert store.revoked([ann]) == [pytest.approx(at)]

    @pytest.mark.parametrize(("here", "there"), [(0, -5), (0, 60), (-90, 90), (90, -90)])
    def test_a_revocation_locks_nobody_out_who_was_authenticated_later(
        self, store_on: Callable[[float], SessionStore], here: float, there: float
    ) -> None:
        store, other = store_on(here), store_on(there)
        other.revoke(ann)
        record = SessionRecord(ann, self.authenticated(store) + CLOCK_MARGIN)
        store.save({"a": record})
        assert store.load("a", ann) == record

    @pytest.mark.parametrize("ahead", [-2 * TTL, 2 * TTL])
    def test_a_record_lives_as_long_on_every_host(
        self, store_on: Callable[[float], SessionStore], ahead: float
    ) -> None:
        store, other = store_on(0), store_on(ahead)
        store.save({"a": ANN})
        other.save({"b": BOB})
        other.prune()
        assert other.load("a", ann) == ANN
        assert store.load("b", bob) == BOB
        assert other.touch(["a", "b"]) == set()

    def test_revocations_by_the_clocks_of_hosts_stay_in_force(
        self, server_kind: str, store_on: Callable[[float], SessionStore], redis_pool: RedisPool, key_prefix: str
    ) -> None:
        # An earlier version of this package stored the time by the clock of the host.
        store, at = store_on(0), round(time.time(), 3)
        if server_kind == "postgres":
            Revocation.objects.using("postgres").create(condition=condition_key(ann), at=at)
        else:
            redis_pool.find(server_kind).cli("SET", revocation_key(key_prefix, condition_key(ann)), f"{at:.6f}")
        store.save({"a": SessionRecord(ann, at - 1), "later": SessionRecord(ann, at + 10)})
        assert store.load("a", ann) is None
        assert store.load("later", ann) is not None
        assert store.revoked([ann]) == [pytest.approx(at)]

    def test_the_time_is_that_of_the_server(self, store_on: Callable[[float], SessionStore]) -> None:
        store = store_on(1000)
        told = [store.time(), store.revoke(ann), *(ask() for ask in store.clocks().values())]
        assert len(told) >= 3
        assert all(abs(at - time.time()) < 100 for at in told)

    async def test_the_time_of_the_async_twins_is_that_of_the_server(
        self, store_on: Callable[[float], SessionStore]
    ) -> None:
        store = store_on(1000)
        for tell in (store.atime, partial(store.arevoke, ann)):
            assert abs(await tell() - time.time()) < 100


def test_the_memory_store_forgets_old_revocations(clock: Clock) -> None:
    store = MemorySessionStore(replace(get_settings(), sessions_ttl=TTL), clock=clock)
    store.revoke(ann)
    clock.advance(TTL + 2)
    store.revoke(bob)
    assert store.revoked([ann, bob]) == [0, clock()]
