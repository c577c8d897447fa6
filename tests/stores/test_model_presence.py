"""The presence store in the database: several processes, lost data, concurrency, and the number of queries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from django.db import connections, transaction
from django.db.backends.utils import CursorWrapper
from django.test import override_settings

from reliable_cable import models
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import StoreError
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.presence.base import Member, PresenceEvent, PresenceMissed
from reliable_cable.stores.presence.model import ModelPresenceStore
from reliable_cable.stores.presence.model_events import MAX_NEW_EVENTS
from reliable_cable.stores.streams.model_polling import Poll
from tests.support.layer import CrossLoopLayer

from .conftest import (
    MODEL_STORES,
    POSTGRES,
    SQLITE,
    Clock,
    finish_store_threads,
    until,
    with_own_connection,
)
from .presence import KEPT, TTL, ThreadedPresenceStore, joined, left
from .test_stream_concurrency import in_threads, isolation

__all__ = ["isolation"]

on_every_database = pytest.mark.parametrize("alias", MODEL_STORES, indirect=True)
MakePresence = Callable[..., ModelPresenceStore]
#: The models of presence.
MODELS = (models.PresenceStream, models.PresenceSession, models.PresenceEntry, models.PresenceSweep)


@pytest.fixture
def make(alias: str, clock: Clock) -> Iterator[MakePresence]:
    """Return a function that makes stores of one database. They act like the stores of separate processes."""
    made: list[ModelPresenceStore] = []

    def make(**settings: Any) -> ModelPresenceStore:
        values: dict[str, Any] = {"presence_ttl": TTL, "sessions_ttl": KEPT, "poll_interval": 0.01, **settings}
        made.append(ThreadedPresenceStore(CableSettings(database=alias, **values), clock=clock))
        return made[-1]

    yield make
    for store in made:
        store.close()
    finish_store_threads()


@pytest.fixture
def here(make: MakePresence) -> ModelPresenceStore:
    """The store of a process that listens."""
    return make()


@pytest.fixture
def there(make: MakePresence) -> ModelPresenceStore:
    """The store of another process."""
    return make()


@pytest.fixture
async def heard(here: ModelPresenceStore) -> AsyncIterator[list[PresenceEvent | PresenceMissed]]:
    """A list of the events of the stream `s` that `here` announces."""
    heard: list[PresenceEvent | PresenceMissed] = []
    listener = here.listen(heard.append)
    await listener.subscribe("s")
    yield heard
    await listener.close()


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list of the statements that all threads execute, except for PRAGMA."""
    queries: list[str] = []
    execute = CursorWrapper.execute

    def counted(cursor: Any, sql: str, params: Any = None) -> Any:
        if not sql.startswith("PRAGMA"):
            queries.append(sql)
        return execute(cursor, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", counted)
    return queries


async def delete_rows(alias: str, *deleted: type[Any]) -> None:
    def delete() -> None:
        for model in deleted:
            model._default_manager.using(alias).all()._raw_delete(alias)

    await asyncio.to_thread(with_own_connection(delete))


@on_every_database
class TestProcesses:
    async def test_events_of_another_process_are_announced_once_and_in_order(
        self, here: ModelPresenceStore, there: ModelPresenceStore, heard: list[Any]
    ) -> None:
        for number in range(3):
            there.join("s", "phone", "1", number)
            here.join("s", "desk", "2")
            there.leave("s", "phone")
            here.leave("s", "desk")
        await until(lambda: len(heard) == 12)
        turn = [joined("2"), left("2")]
        assert [event for event in heard if event.id == "2"] == turn * 3
        assert [event for event in heard if event.id == "1"] == [
            event for number in range(3) for event in (joined("1", number), left("1", number))
        ]

    async def test_the_members_of_all_processes_are_found(
        self, here: ModelPresenceStore, there: ModelPresenceStore
    ) -> None:
        here.join("s", "phone", "1", "Ann")
        there.join("s", "desk", "1", "Anne")
        there.join("s", "pad", "2")
        assert here.info("s").records == there.info("s").records == {"1": "Ann", "2": None}
        assert here.info("s").incarnation == there.info("s").incarnation != ""

    @pytest.mark.parametrize("polled", [False, True])
    async def test_events_before_the_subscription_are_not_announced(
        self, here: ModelPresenceStore, there: ModelPresenceStore, polled: bool
    ) -> None:
        """If `polled`, a regular poll in another thread has just read that there are no newer events."""
        there.join("s", "phone", "1")
        heard: list[Any] = []
        listener = here.listen(heard.append)
        unchanged = mock.patch.object(listener._polled, "poll", return_value=Poll({}, (), (), unchanged=True))
        with unchanged if polled else nullcontext():
            await listener.subscribe("s")
        there.join("s", "desk", "2")
        await until(lambda: heard)
        await listener.close()
        assert heard == [joined("2")]

    async def test_an_event_during_the_subscription_is_announced_without_a_poll(
        self, make: MakePresence, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make(poll_interval=3600)
        heard: list[Any] = []
        listener = store.listen(heard.append)
        await listener.subscribe("other")  # from now on, the listener polls
        read = store.positions

        def read_before_a_join(streams: Collection[str]) -> dict[str, StreamPosition]:
            found = read(streams)
            store.join("s", "phone", "1")
            return found

        monkeypatch.setattr(store, "positions", read_before_a_join)
        await listener.subscribe("s")
        await until(lambda: heard)
        assert heard == [joined("1")]
        await listener.close()

    async def test_a_fence_waits_for_earlier_events(self, make: MakePresence) -> None:
        here, there = make(poll_interval=60), make()
        heard: list[Any] = []
        listener = here.listen(heard.append)
        await listener.subscribe("s")
        there.join("s", "phone", "1")
        await listener.fence("s")
        assert heard == [joined("1")]
        await listener.fence("not subscribed")
        await listener.close()

    async def test_other_processes_are_woken_over_a_channel_layer(self, alias: str, make: MakePresence) -> None:
        CrossLoopLayer.reset()
        with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": "tests.support.layer.CrossLoopLayer"}}):
            here, there = make(poll_interval=60), make(poll_interval=60)
            heard: list[Any] = []
            listener = here.listen(heard.append)
            await listener.subscribe("s")
            await until(lambda: CrossLoopLayer.groups)
            there.join("s", "phone", "1")
            await until(lambda: heard)
            await listener.close()
        assert heard == [joined("1")]

    async def test_a_failed_read_is_repeated_after_the_next_poll(
        self, here: ModelPresenceStore, make: MakePresence, heard: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = make(notify=False)
        failures: list[Any] = []

        async def fail(positions: Any) -> Any:
            failures.append(positions)
            raise StoreError("down")

        with monkeypatch.context() as patch:
            patch.setattr(here, "aread_events", fail)
            there.join("s", "phone", "1")
            await until(lambda: len(failures) > 1)
        await until(lambda: heard)
        assert heard == [joined("1")]


@on_every_database
class TestLostData:
    async def test_emptied_tables_begin_a_new_incarnation(
        self, alias: str, here: ModelPresenceStore, there: ModelPresenceStore, heard: list[Any]
    ) -> None:
        there.join("s", "phone", "1")
        await until(lambda: heard)
        before = here.refresh({"s": ()}).incarnations["s"]
        await delete_rows(alias, *MODELS)
        await until(lambda: len(heard) > 1)
        assert heard[1:] == [PresenceMissed("s")]
        refreshed = there.refresh({"s": ["phone"]})
        assert refreshed.unknown == [("s", "phone")]
        assert refreshed.incarnations["s"] == here.info("s").incarnation != before
        assert there.join_all([Member("s", "phone", "1", joined=True)]) == [], "the member has not really joined"
        await until(lambda: heard[-1] == joined("1"))

    async def test_missing_events_are_reported(
        self, alias: str, here: ModelPresenceStore, there: ModelPresenceStore, heard: list[Any]
    ) -> None:
        there.join("s", "phone", "1")
        await until(lambda: heard)
        await delete_rows(alias, models.PresenceEntry)
        await asyncio.to_thread(with_own_connection(lambda: models.PresenceStream.objects.using(alias).update(tail=10)))
        await until(lambda: len(heard) > 1)
        assert heard[1:] == [PresenceMissed("s")]

    async def test_older_data_begin_a_new_incarnation(
        self, alias: str, here: ModelPresenceStore, there: ModelPresenceStore, heard: list[Any]
    ) -> None:
        there.join("s", "phone", "1")
        there.join("t", "phone", "1")
        there.join("s", "desk", "2")
        await until(lambda: len(heard) == 2)
        before = here.refresh({"s": (), "t": ()}).incarnations

        def restore() -> None:
            models.PresenceStream.objects.using(alias).filter(name="s").update(tail=1)
            models.PresenceEntry.objects.using(alias).filter(stream__name="s", number=2).delete()

        await asyncio.to_thread(with_own_connection(restore))
        await until(lambda: PresenceMissed("s") in heard)
        await until(lambda: here.info("s").incarnation != before["s"])
        assert here.info("t").incarnation != before["t"]

    async def test_very_many_events_are_not_read(self, make: MakePresence, heard: list[Any]) -> None:
        there = make(notify=False)
        there.join_all([Member("s", f"phone{number}", str(number)) for number in range(MAX_NEW_EVENTS + 1)])
        await until(lambda: PresenceMissed("s") in heard)
        assert len(heard) < MAX_NEW_EVENTS


@on_every_database
class TestCost:
    def test_a_thousand_members_are_renewed_with_few_statements(
        self, make: MakePresence, clock: Clock, queries: list[str]
    ) -> None:
        store = make()
        held = {f"stream {number}": [f"session {index}" for index in range(20)] for number in range(50)}
        members = [Member(stream, session, session) for stream, sessions in held.items() for session in sessions]
        store.join_all(members)
        store.expire()
        clock.advance(TTL / 3)
        queries.clear()
        assert store.refresh(held).unknown == []
        assert store.expire() == []
        assert len(queries) <= 12
        clock.advance(TTL - 1)
        store.expire()
        assert store.info("stream 0", overdue=False).total == 20

    async def test_simultaneous_joins_share_transactions(self, make: MakePresence, queries: list[str]) -> None:
        store = make()
        store.join("s", "first", "first")
        queries.clear()
        caused = await asyncio.gather(
            *(store.ajoin_all([Member("s", f"phone{number}", str(number))]) for number in range(100))
        )
        assert caused == [[joined(str(number))] for number in range(100)]
        assert len(queries) < 50
        queries.clear()
        await asyncio.gather(*(store.ashorten("s", f"phone{number}") for number in range(100)))
        assert len(queries) < 20

    async def test_a_member_that_cannot_be_encoded_fails_alone(self, make: MakePresence) -> None:
        store = make()
        results = await asyncio.gather(
            store.ajoin_all([Member("s", "phone", "1")]),
            store.ajoin_all([Member("s", "desk", "2", object())]),
            return_exceptions=True,
        )
        assert results[0] == [joined("1")]
        assert isinstance(results[1], TypeError)


@on_every_database
class TestTransactions:
    def test_a_rollback_of_the_caller_removes_no_member(self, alias: str, make: MakePresence) -> None:
        store = ModelPresenceStore(make().settings)
        if alias == "default":
            # The default database of the tests begins transactions with IMMEDIATE, which takes SQLite's only lock.
            with transaction.atomic(), pytest.raises(StoreError, match="locked by the caller's own transaction"):
                store.join("s", "phone", "1")
            return
        with transaction.atomic(using=alias):
            store.join("s", "phone", "1")
            transaction.set_rollback(True, using=alias)
        assert store.info("s").records == {"1": None}
        connections[alias].close()

    def test_reads_are_part_of_the_callers_transaction(self, alias: str, make: MakePresence) -> None:
        make().join("s", "phone", "1")
        store = ModelPresenceStore(make().settings)
        with transaction.atomic(using=alias):
            assert store.info("s").records == {"1": None}
        connections[alias].close()


def churn(store: ModelPresenceStore) -> None:
    """Let threads join, leave, refresh and expire members of two streams, and check the events that they caused."""
    store.settings = replace(store.settings, presence_ttl=0.05)
    caused: list[PresenceEvent] = []

    def come_and_go(session: str) -> Callable[[], None]:
        def run() -> None:
            for number in range(10):
                for stream in "st":
                    caused.extend(store.join(stream, session, str(number % 2)))
                store.shorten("s", session)
                if number % 3:
                    for stream in "ts":
                        caused.extend(store.leave(stream, session))

        return run

    def renew() -> None:
        for _ in range(10):
            store.refresh({stream: [f"phone{number}" for number in range(4)] for stream in "st"})
            caused.extend(store.expire())

    in_threads(*(come_and_go(f"phone{number}") for number in range(4)), renew)
    for stream in "st":
        for number in range(4):
            caused.extend(store.leave(stream, f"phone{number}"))
        assert store.info(stream).total == 0
        for id_ in "01":
            events = [event.type for event in caused if (event.stream, event.id) == (stream, id_)]
            assert events.count("join") == events.count("leave") > 0


@on_every_database
def test_concurrent_changes_do_not_fail(alias: str) -> None:
    churn(ModelPresenceStore(CableSettings(database=alias)))


@pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
@pytest.mark.usefixtures("isolation")
def test_concurrent_changes_do_not_fail_at_other_isolation_levels(alias: str) -> None:
    churn(ModelPresenceStore(CableSettings(database=alias)))


@pytest.mark.parametrize("alias", [POSTGRES], indirect=True)
def test_the_tables_are_unlogged(alias: str) -> None:
    names = [model._meta.db_table for model in MODELS]
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT relname, relpersistence FROM pg_class WHERE relname = ANY(%s)", [names])
        assert dict(cursor.fetchall()) == dict.fromkeys(names, "u")


@pytest.mark.parametrize("alias", [SQLITE], indirect=True)
def test_missing_tables_are_reported_with_the_remedy(alias: str, make: MakePresence) -> None:
    store = make()

    def rename(before: str, after: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(f"ALTER TABLE {before} RENAME TO {after}")

    rename("reliable_cable_presencesession", "elsewhere")
    try:
        with pytest.raises(StoreError, match=r"Run `manage.py migrate`\."):
            store.join("s", "phone", "1")
    finally:
        rename("elsewhere", "reliable_cable_presencesession")
