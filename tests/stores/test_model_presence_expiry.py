"""The removal of expired members and old rows from the database, by any process, and by the clock of PostgreSQL."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any
from unittest import mock

import pytest

from reliable_cable import models
from reliable_cable.conf import CableSettings
from reliable_cable.stores.database.server import DatabaseServer
from reliable_cable.stores.presence import model
from reliable_cable.stores.presence.base import SEARCH_INTERVAL, Member, PresenceEvent
from reliable_cable.stores.presence.model import ModelPresenceStore
from reliable_cable.stores.streams.model_polling import PRUNE_INTERVAL

from .conftest import POSTGRES, Clock, until, wait_until, with_own_connection
from .presence import KEPT, TTL, check_an_upgrade, elapse, left
from .test_model_presence import MakePresence, heard, here, make, on_every_database, queries, there
from .test_stream_concurrency import in_threads

__all__ = ["heard", "here", "make", "queries", "there"]


@on_every_database
class TestExpiry:
    async def test_any_process_removes_expired_members(
        self, here: ModelPresenceStore, there: ModelPresenceStore, heard: list[Any], clock: Clock
    ) -> None:
        there.join("s", "phone", "1")
        there.join("t", "phone", "1")
        here.join("s", "desk", "2")
        elapse(there, clock, TTL - 1)
        assert here.refresh({"s": ["desk"]}).unknown == []
        assert here.expire() == []
        clock.advance(2)
        assert here.expire() == [left("1"), left("1", stream="t")]
        assert there.expire() == []
        assert there.refresh({"s": ["phone"]}).unknown == [("s", "phone")]
        await until(lambda: left("1") in heard)
        assert there.info("s").records == {"2": None}

    def test_a_leave_is_returned_once_if_processes_expire_at_the_same_time(
        self, make: MakePresence, clock: Clock
    ) -> None:
        stores = [make() for _ in range(3)]
        stores[0].join_all([Member("s", f"phone{number}", str(number)) for number in range(50)])
        for _ in range(3):
            stores[0].expire()  # regularly, so that there was no outage
            clock.advance(TTL / 3 + 1)
        returned: list[PresenceEvent] = []
        in_threads(*(partial(lambda store: returned.extend(store.expire()), store) for store in stores))
        assert sorted(event.id for event in returned) == sorted(str(number) for number in range(50))

    def test_processes_search_for_expired_members_in_turn(
        self, here: ModelPresenceStore, there: ModelPresenceStore, clock: Clock, queries: list[str]
    ) -> None:
        here.join("s", "phone", "1")
        assert elapse(here, clock, TTL - SEARCH_INTERVAL / 2) == []
        clock.advance(SEARCH_INTERVAL / 2)
        queries.clear()
        assert there.expire() == []
        assert not [sql for sql in queries if '"expires"' in sql], "another process has just searched"
        clock.advance(SEARCH_INTERVAL / 2)
        assert there.expire() == [left("1")]

    def test_members_that_joined_on_an_earlier_release_leave_only_after_a_time_in_which_they_could_be_refreshed(
        self, alias: str, here: ModelPresenceStore, clock: Clock
    ) -> None:
        check_an_upgrade(here, clock, lambda: models.PresenceSweep.objects.using(alias).all()._raw_delete(alias))

    def test_only_the_first_join_writes_when_sessions_were_last_searched(
        self, here: ModelPresenceStore, there: ModelPresenceStore, queries: list[str]
    ) -> None:
        here.join("s", "phone", "1")
        assert len(_writes_of_sweeps(queries)) == 1
        there.join("s", "desk", "2")
        there.join("t", "desk", "2")
        there.refresh({"t": ["desk"]})
        there.leave("t", "desk")
        assert len(_writes_of_sweeps(queries)) == 1

    def test_one_search_finds_the_expired_members_of_many_streams(
        self, here: ModelPresenceStore, queries: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(model, "STREAMS_PER_SWEEP", 2)
        monkeypatch.setattr(model, "CHANGES_PER_TRANSACTION", 3)
        here.join_all([Member(f"s{number % 5}", f"phone{number}", str(number)) for number in range(20)])
        elapse(here, clock, TTL - 1)
        clock.advance(1)
        queries.clear()
        assert sorted(int(event.id) for event in here.expire()) == list(range(20))
        searches = [sql for sql in queries if '"expires" <=' in sql and "presencestream" in sql]
        assert len(searches) == 1, "a search reads all sessions"


def _writes_of_sweeps(queries: list[str]) -> list[str]:
    return [sql for sql in queries if "presencesweep" in sql and sql.startswith(("INSERT", "UPDATE", "DELETE"))]


@on_every_database
class TestPruning:
    def test_old_events_and_unused_streams_are_deleted(self, alias: str, make: MakePresence, clock: Clock) -> None:
        store = make()
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        store.join("t", "phone", "1")
        clock.advance(store.memory)
        assert store.prune() == 0
        clock.advance(1)
        assert store.prune() == 3
        clock.advance(KEPT)
        assert store.prune() == 1
        assert store.info("s").incarnation == ""
        assert store.info("t").incarnation != "", "it has a member"
        assert store.prune() == 0

    async def test_rows_are_bounded_while_members_come_and_go(
        self, alias: str, make: MakePresence, clock: Clock
    ) -> None:
        store = make()
        listener = store.listen(lambda event: None)
        people = [Member("s", f"phone{number}", str(number)) for number in range(10)]
        limit = 25
        counts: list[int] = []
        for _ in range(9):
            for _ in range(2):
                await store.ajoin_all(people)
                await asyncio.gather(*(store.aleave("s", member.session) for member in people))
            clock.advance(PRUNE_INTERVAL)
            await asyncio.to_thread(with_own_connection(partial(listener._polling._store.prune, limit=limit)))
            counts.append(await asyncio.to_thread(with_own_connection(models.PresenceEntry.objects.using(alias).count)))
        per_interval = 2 * 2 * len(people)
        assert per_interval > limit, "one call deletes fewer rows than are inserted"
        assert counts[-3:] == [per_interval * store.memory / PRUNE_INTERVAL] * 3
        assert await asyncio.to_thread(with_own_connection(models.PresenceSession.objects.using(alias).count)) == 0

    def test_a_stream_that_is_refreshed_stays(self, make: MakePresence, clock: Clock) -> None:
        store = make()
        incarnation = store.refresh({"s": ()}).incarnations["s"]
        for _ in range(20):
            clock.advance(50)
            store.refresh({"s": ()})
            store.prune()
        assert store.info("s").incarnation == incarnation


@pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
def test_times_come_from_the_clock_of_postgresql(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelPresenceStore(CableSettings(database=alias, presence_ttl=0.2))
    monkeypatch.setattr(DatabaseServer, "_host_time", mock.Mock(side_effect=AssertionError("the clock of this host")))
    store.join("s", "phone", "1")
    assert store.refresh({"s": ["phone"]}).unknown == []
    store.shorten("s", "phone")
    wait_until(lambda: store.info("s", overdue=False).total == 0)
    assert store.info("s").total == 1
    wait_until(lambda: store.expire() == [left("1")])
    assert store.left_within("s", 60) == ["1"]
    assert store.prune() == 0
