"""What every session store does about sessions that were revoked, whenever they are saved (sessions/base.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reliable_cable.conf import get_settings
from reliable_cable.sessions.base import CLOCK_MARGIN, SessionRecord, SessionStore
from reliable_cable.sessions.memory import MemorySessionStore

from .conftest import Clock
from .sessions import ANN, BOB, MOMENT, THEN, TTL, ann, bob, clock, kind, nobody, store

__all__ = ["clock", "kind", "store"]


@pytest.mark.django_db(transaction=True, databases="__all__")
class TestEveryStore:
    def test_what_was_revoked_is_not_loaded_any_more(self, store: SessionStore) -> None:
        store.save({"a": ANN, "a2": ANN, "b": BOB})
        assert store.revoke(ann) == THEN
        assert store.load("a", ann) is None
        assert store.load("a2", ann) is None
        assert store.load("b", bob) == BOB

    def test_not_even_if_it_is_saved_later(self, store: SessionStore, clock: Clock) -> None:
        # By a process that was late, or has not heard of it.
        store.revoke(ann)
        clock.advance(10)
        store.save({"a": ANN})
        store.touch(["a"])
        assert store.load("a", ann) is None

    def test_what_was_authenticated_later_is(self, store: SessionStore, clock: Clock) -> None:
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

    def test_a_revocation_outlives_every_record_that_it_voids(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN})
        store.revoke(ann)
        clock.advance(TTL / 2)
        store.prune()
        store.revoke(bob)
        clock.advance(TTL / 2 - MOMENT)
        store.prune()
        store.touch(["a"])
        assert store.load("a", ann) is None

    async def test_the_async_twins_revoke_as_well(self, store: SessionStore) -> None:
        await store.asave({"a": ANN, "b": BOB})
        assert await store.arevoke(ann) == THEN
        assert await store.arevoked([ann, bob, nobody]) == [THEN, 0, 0]
        assert await store.aload("a", ann) is None
        assert await store.aload("b", bob) == BOB


def test_memory_forgets_what_was_revoked_long_ago(clock: Clock) -> None:
    store = MemorySessionStore(replace(get_settings(), sessions_ttl=TTL), clock=clock)
    store.revoke(ann)
    clock.advance(TTL + 2)
    store.revoke(bob)
    assert store.revoked([ann, bob]) == [0, clock()]
