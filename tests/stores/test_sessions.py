"""What every session store does (sessions/base.py), and what the model store costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from django.conf import settings as django_settings
from django.db import OperationalError, connections
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext

from reliable_cable.conf import get_settings
from reliable_cable.exceptions import StoreError
from reliable_cable.models import Session
from reliable_cable.sessions.base import SessionRecord, SessionStore
from reliable_cable.sessions.memory import MemorySessionStore
from reliable_cable.sessions.model import ModelSessionStore

from .conftest import Clock

TTL = 300.0

ANN = SessionRecord("1", {"subscriptions": [{"identifier": '{"channel":"Chat"}', "offset": 5}]})
BOB = SessionRecord("2", {})


#: Aliases of the databases that the model store is tested on.
ALIASES = [
    pytest.param(alias, marks=pytest.mark.postgres if alias == "postgres" else ())
    for alias in django_settings.DATABASES
]


@pytest.fixture(params=ALIASES)
def alias(request: pytest.FixtureRequest) -> str:
    alias: str = request.param
    return alias


def model_store(alias: str, clock: Clock, **settings: Any) -> ModelSessionStore:
    return ModelSessionStore(replace(get_settings(), sessions_ttl=TTL, database=alias, **settings), clock=clock)


@pytest.fixture(params=["memory", *ALIASES])
def store(request: pytest.FixtureRequest, clock: Clock) -> SessionStore:
    if request.param == "memory":
        return MemorySessionStore(replace(get_settings(), sessions_ttl=TTL), clock=clock)
    return model_store(request.param, clock)


@pytest.mark.django_db(transaction=True, databases="__all__")
class TestEveryStore:
    def test_what_was_saved_is_loaded_and_stays(self, store: SessionStore) -> None:
        store.save({"a": ANN, "b": BOB})
        assert store.load("a") == ANN
        assert store.load("a") == ANN
        assert store.load("b") == BOB

    def test_an_unknown_session_is_none(self, store: SessionStore) -> None:
        assert store.load("a") is None

    @pytest.mark.parametrize("sid", ["", "x" * 10_000, "a\x00b", "é", "\ud800", "a\nb"])
    def test_an_impossible_session_id_is_none(self, store: SessionStore, sid: str) -> None:
        assert store.load(sid) is None

    def test_saving_again_replaces(self, store: SessionStore) -> None:
        store.save({"a": ANN})
        store.save({"a": BOB})
        assert store.load("a") == BOB

    def test_a_record_lives_its_time_and_no_longer(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN})
        clock.advance(TTL - 1)
        assert store.load("a") == ANN
        clock.advance(1)
        assert store.load("a") is None

    def test_saving_again_begins_the_time_anew(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN})
        clock.advance(TTL - 1)
        store.save({"a": ANN})
        clock.advance(TTL - 1)
        assert store.load("a") == ANN

    def test_touching_begins_the_time_anew(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN, "b": BOB})
        clock.advance(TTL - 1)
        store.touch(["a", "unknown"])
        clock.advance(TTL - 1)
        assert store.load("a") == ANN
        assert store.load("b") is None

    def test_touching_does_not_bring_back_what_expired(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN})
        clock.advance(TTL)
        store.touch(["a"])
        assert store.load("a") is None

    def test_deleted_records_are_gone(self, store: SessionStore) -> None:
        store.save({"a": ANN, "b": BOB})
        store.delete(["a", "unknown"])
        assert store.load("a") is None
        assert store.load("b") == BOB

    def test_nothing_to_do_is_no_error(self, store: SessionStore) -> None:
        store.save({})
        store.touch([])
        store.delete([])
        assert store.prune() == 0

    def test_pruning_deletes_the_expired_within_its_limit(self, store: SessionStore, clock: Clock) -> None:
        store.save({f"old{number}": ANN for number in range(5)})
        clock.advance(TTL / 2)
        store.save({"young": BOB})
        clock.advance(TTL / 2)
        assert store.prune(limit=3) == 3
        assert store.prune(limit=3) == 2
        assert store.prune(limit=3) == 0
        assert store.load("young") == BOB

    def test_a_touched_record_is_not_pruned(self, store: SessionStore, clock: Clock) -> None:
        store.save({"a": ANN, "b": BOB})
        clock.advance(TTL / 2)
        store.touch(["a"])
        clock.advance(TTL / 2)
        assert store.prune() == 1
        assert store.load("a") == ANN

    def test_records_are_not_shared_with_the_caller(self, store: SessionStore) -> None:
        data: dict[str, Any] = {"ids": [1]}
        store.save({"a": SessionRecord("1", data)})
        data["ids"].append(2)
        first = store.load("a")
        assert first is not None
        first.data["ids"].append(3)
        assert store.load("a") == SessionRecord("1", {"ids": [1]})

    def test_any_text_that_a_client_can_send_is_kept(self, store: SessionStore) -> None:
        odd = SessionRecord("1", {"identifier": 'NUL \x00, half a pair \ud800, "quotes" \\, é, \U0001f600'})
        store.save({"a": odd, "b": BOB})
        assert store.load("a") == odd
        assert store.load("b") == BOB

    def test_what_is_not_json_is_an_error_and_nothing_is_saved(self, store: SessionStore) -> None:
        with pytest.raises(TypeError):
            store.save({"b": BOB, "a": SessionRecord("1", {"when": object()})})
        assert store.load("b") is None

    async def test_the_async_twins_do_the_same(self, store: SessionStore, clock: Clock) -> None:
        await store.asave({"a": ANN, "b": BOB})
        assert await store.aload("a") == ANN
        clock.advance(TTL - 1)
        await store.atouch(["a"])
        clock.advance(1)
        assert await store.aprune() == 1
        await store.adelete(["a"])
        assert await store.aload("a") is None

    async def test_many_at_once(self, store: SessionStore) -> None:
        await asyncio.gather(*(store.asave({f"s{number}": ANN}) for number in range(20)))
        assert [await store.aload(f"s{number}") for number in range(20)] == [ANN] * 20


def test_without_a_time_to_live_memory_stores_nothing(clock: Clock) -> None:
    store = MemorySessionStore(replace(get_settings(), sessions_ttl=0), clock=clock)
    store.save({"a": ANN})
    clock.advance(-1)
    assert store.load("a") is None


@pytest.mark.django_db(databases="__all__")
class TestModelStore:
    def test_without_a_time_to_live_nothing_is_stored(self, alias: str, clock: Clock) -> None:
        store = ModelSessionStore(replace(get_settings(), sessions_ttl=0, database=alias), clock=clock)
        store.save({"a": ANN})
        assert not Session.objects.using(alias).exists()

    def test_each_operation_is_one_statement(self, alias: str, clock: Clock) -> None:
        store = model_store(alias, clock)
        many = {f"s{number}": ANN for number in range(100)}
        calls: dict[str, Callable[[], object]] = {
            "INSERT": lambda: store.save(many),
            "SELECT": lambda: store.load("s1"),
            "UPDATE": lambda: store.touch(list(many)),
            "DELETE": lambda: store.delete(list(many)[:50]),
        }
        for verb, call in calls.items():
            with CaptureQueriesContext(connections[alias]) as captured:
                call()
            statements = [query["sql"] for query in captured if "reliable_cable_session" in query["sql"]]
            assert len(statements) == 1
            assert statements[0].startswith(verb)

    def test_pruning_is_one_statement_that_uses_the_index(self, alias: str, clock: Clock) -> None:
        store = model_store(alias, clock)
        store.save({f"s{number}": ANN for number in range(20)})
        clock.advance(TTL)
        with CaptureQueriesContext(connections[alias]) as captured:
            assert store.prune(limit=5) == 5
        statements = [query["sql"] for query in captured if "reliable_cable_session" in query["sql"]]
        assert len(statements) == 1
        expired = Session.objects.using(alias).filter(expires__lte=clock()).order_by("expires")[:5]
        with connections[alias].cursor() as cursor:
            if connections[alias].vendor == "postgresql":
                # On so few rows the planner would rather read them all.
                cursor.execute("SET LOCAL enable_seqscan = off")
            plan = expired.explain()
        assert "reliable_cable_session_expires" in plan

    def test_a_database_that_fails_is_a_store_error(self, alias: str, clock: Clock) -> None:
        store = model_store(alias, clock)
        failure = OperationalError("database is locked")
        with mock.patch.object(QuerySet, "bulk_create", side_effect=failure), pytest.raises(StoreError, match="locked"):
            store.save({"a": ANN})
        with mock.patch.object(QuerySet, "update", side_effect=failure), pytest.raises(StoreError, match="locked"):
            store.touch(["a"])
