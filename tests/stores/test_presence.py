"""What every presence store does (presence/base.py)."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.presence.base import (
    UNHEARD_TIME,
    Member,
    PresenceEvent,
    PresenceInfo,
    PresenceMissed,
    PresenceStore,
)
from reliable_cable.presence.memory import MemoryPresenceStore
from reliable_cable.presence.redis import RedisPresenceStore

from .conftest import MEMORY, REDIS_STORES, Clock

TTL = 15.0
KEPT = 300.0


#: What keeps the stores, for the fixture `alias`.
STORES = [MEMORY, *REDIS_STORES]


@pytest.fixture(params=STORES)
def alias(request: pytest.FixtureRequest) -> str:
    """`memory`, or a Redis by name."""
    alias: str = request.param
    return alias


@pytest.fixture
def store(alias: str, redis_settings: dict[str, Any], clock: Clock, made_stores: list[Any]) -> Iterator[PresenceStore]:
    settings = CableSettings(presence_ttl=TTL, sessions_ttl=KEPT, **redis_settings)
    if alias == "memory":
        yield MemoryPresenceStore(settings, clock=clock)
        return
    store = RedisPresenceStore(settings, clock=clock)
    made_stores.append(store)
    yield store
    store.close()


def joined(id_: str, info: Any = None, stream: str = "s") -> PresenceEvent:
    return PresenceEvent(stream, "join", id_, info)


def left(id_: str, info: Any = None, stream: str = "s") -> PresenceEvent:
    return PresenceEvent(stream, "leave", id_, info)


marks = itertools.count()


class Ear:
    """Gathers a store's events of some streams."""

    def __init__(self, store: PresenceStore, deliver: Callable[[PresenceEvent], None] | None = None) -> None:
        self._events: list[PresenceEvent] = []
        self._store = store
        self._id = ""
        self._tap = deliver or self._events.append
        self._mark = asyncio.Event()
        self.listener = store.listen(self._deliver)

    def _deliver(self, event: PresenceEvent | PresenceMissed) -> None:
        assert isinstance(event, PresenceEvent)
        if event.stream != "marks":
            self._tap(event)
        elif event.id == self._id:
            self._mark.set()

    async def heard(self) -> list[PresenceEvent]:
        """Return what happened since the last call."""
        # Whatever happened before is announced before.
        self._id = str(next(marks))
        self._mark.clear()
        self._store.join("marks", "mark", self._id)
        await asyncio.wait_for(self._mark.wait(), 10)
        events = list(self._events)
        self._events.clear()
        return events


async def listen(store: PresenceStore, *streams: str, deliver: Callable[[PresenceEvent], None] | None = None) -> Ear:
    """Return an ear for streams."""
    ear = Ear(store, deliver)
    for stream in ("marks", *streams):
        await ear.listener.subscribe(stream)
    return ear


@pytest.fixture
async def ear(store: PresenceStore) -> AsyncIterator[Ear]:
    ear = await listen(store, "s", "t", "other")
    yield ear
    await ear.listener.close()


class TestMembers:
    async def test_the_first_session_of_an_id_joins_and_the_last_one_leaves(
        self, store: PresenceStore, ear: Ear
    ) -> None:
        store.join("s", "phone", "1", {"name": "Ann"})
        store.join("s", "desk", "1", {"name": "Ann"})
        store.leave("s", "phone")
        assert await ear.heard() == [joined("1", {"name": "Ann"})]
        assert store.info("s") == PresenceInfo(1, {"1": {"name": "Ann"}})
        store.leave("s", "desk")
        assert await ear.heard() == [left("1", {"name": "Ann"})]
        assert store.info("s") == PresenceInfo(0, {})

    async def test_joining_again_with_another_info_updates_the_record_without_an_event(
        self, store: PresenceStore, ear: Ear
    ) -> None:
        store.join("s", "phone", "1", {"name": "Ann"})
        store.join("s", "phone", "1", {"name": "Anna"})
        store.join("s", "desk", "1", {"name": "Anne"})
        assert await ear.heard() == [joined("1", {"name": "Ann"})]
        assert store.info("s").records == {"1": {"name": "Anne"}}

    async def test_a_session_that_joins_as_another_id_has_left_as_the_first(
        self, store: PresenceStore, ear: Ear
    ) -> None:
        store.join("s", "phone", "1")
        store.join("s", "phone", "2")
        assert await ear.heard() == [joined("1"), left("1"), joined("2")]
        assert store.info("s").records == {"2": None}

    async def test_leaving_twice_or_unknown_is_ignored(self, store: PresenceStore, ear: Ear) -> None:
        store.leave("s", "phone")
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        store.leave("s", "phone")
        store.leave("other", "phone")
        assert await ear.heard() == [joined("1"), left("1")]

    def test_streams_are_apart(self, store: PresenceStore) -> None:
        store.join("s", "phone", "1")
        store.join("t", "phone", "2")
        store.leave("t", "phone")
        assert store.info("s").records == {"1": None}
        assert store.info("t").records == {}

    def test_records_come_in_the_order_of_arrival(self, store: PresenceStore) -> None:
        for id_ in ("3", "1", "2"):
            store.join("s", f"phone{id_}", id_)
        store.join("s", "desk", "3")
        assert list(store.info("s").records or ()) == ["3", "1", "2"]

    def test_only_the_total_may_be_asked_for(self, store: PresenceStore) -> None:
        store.join("s", "phone", "1")
        assert store.info("s", records=False) == PresenceInfo(1, None)
        assert store.info("unknown", records=False) == PresenceInfo(0, None)

    def test_infos_are_not_shared_with_the_caller(self, store: PresenceStore) -> None:
        info: dict[str, Any] = {"tags": []}
        store.join("s", "phone", "1", info)
        info["tags"].append("x")
        first = store.info("s").records
        assert first is not None
        first["1"]["tags"].append("y")
        assert store.info("s").records == {"1": {"tags": []}}

    @pytest.mark.parametrize("info", [float("nan"), object()])
    async def test_an_info_that_is_not_json_is_refused_and_changes_nothing(
        self, store: PresenceStore, ear: Ear, info: object
    ) -> None:
        with pytest.raises((TypeError, ValueError)):
            store.join("s", "phone", "1", info)
        assert store.info("s").total == 0
        assert await ear.heard() == []

    async def test_the_async_twins_do_the_same(self, store: PresenceStore, clock: Clock, ear: Ear) -> None:
        await store.ajoin("s", "phone", "1", "Ann")
        await store.ajoin("s", "desk", "2")
        assert await store.ainfo("s") == PresenceInfo(2, {"1": "Ann", "2": None})
        await store.aleave("s", "desk")
        clock.advance(TTL - 1)
        assert (await store.arefresh({"s": ["phone", "desk"]})).unknown == [("s", "desk")]
        clock.advance(TTL - 1)
        assert await store.aexpire() == []
        clock.advance(1)
        assert await store.aexpire() == [left("1", "Ann")]
        assert await store.aleft_within("s", KEPT) == ["2", "1"]
        assert await store.arejoin([Member("s", "phone", "1", "Ann", joined=True)]) == [joined("1", "Ann")]
        await store.aleave("s", "phone")
        assert await ear.heard() == [
            joined("1", "Ann"),
            joined("2"),
            left("2"),
            left("1", "Ann"),
            joined("1", "Ann"),
            left("1", "Ann"),
        ]


class TestWhatACallCaused:
    def test_is_returned_to_it_alone(self, store: PresenceStore) -> None:
        assert store.join("s", "phone", "1", "Ann") == [joined("1", "Ann")]
        assert store.join("s", "desk", "1", "Anna") == []
        assert store.join("s", "desk", "1", "Anna") == []
        assert store.leave("s", "phone") == []
        assert store.leave("s", "phone") == []
        assert store.join("s", "desk", "2", "Bob") == [left("1", "Anna"), joined("2", "Bob")]
        assert store.leave("s", "desk") == [left("2", "Bob")]

    def test_whoever_sweeps_is_told_of_all_leaves(self, store: PresenceStore, clock: Clock) -> None:
        for stream in ("s", "t"):
            for number in range(3):
                store.join(stream, f"phone{number}", str(number))
        clock.advance(TTL)
        events = store.expire()
        assert sorted((event.stream, event.type, event.id) for event in events) == [
            (stream, "leave", str(number)) for stream in ("s", "t") for number in range(3)
        ]
        assert store.expire() == []

    async def test_nobody_came_where_only_the_data_were_lost(self, store: PresenceStore, ear: Ear) -> None:
        assert store.rejoin([Member("s", "phone", "1", "Ann", joined=True)]) == []
        assert store.rejoin([Member("s", "desk", "2", joined=False)]) == [joined("2")]
        assert store.info("s").records == {"1": "Ann", "2": None}
        assert await ear.heard() == [joined("1", "Ann"), joined("2")], "every list becomes right"

    async def test_who_was_swept_and_comes_back_has_come(self, store: PresenceStore, clock: Clock, ear: Ear) -> None:
        store.join("s", "phone", "1")
        clock.advance(TTL)
        store.expire()
        assert store.rejoin([Member("s", "phone", "1", joined=True)]) == [joined("1")]
        assert await ear.heard() == [joined("1"), left("1"), joined("1")]

    async def test_a_session_that_is_there_joins_again_without_an_event(self, store: PresenceStore, ear: Ear) -> None:
        store.join("s", "phone", "1", "Ann")
        assert store.rejoin([Member("s", "phone", "1", "Anna", joined=True), Member("s", "desk", "1", "Anne")]) == []
        store.leave("s", "phone")
        assert store.info("s").records == {"1": "Anne"}
        assert await ear.heard() == [joined("1", "Ann")]


class TestExpiry:
    async def test_a_session_that_is_not_refreshed_leaves_once(
        self, store: PresenceStore, clock: Clock, ear: Ear
    ) -> None:
        store.join("s", "phone", "1")
        clock.advance(TTL - 1)
        assert store.expire() == []
        clock.advance(1)
        assert store.expire() == [left("1")]
        assert store.expire() == []
        assert await ear.heard() == [joined("1"), left("1")]
        assert store.info("s").total == 0

    async def test_refreshed_sessions_stay(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        store.join("s", "desk", "2")
        store.join("t", "phone", "1")
        clock.advance(TTL - 1)
        refreshed = store.refresh({"s": ["phone", "unknown"], "t": ["phone"]})
        assert refreshed.unknown == [("s", "unknown")]
        clock.advance(TTL - 1)
        assert store.expire() == [left("2")]
        assert store.info("s").records == {"1": None}
        assert store.info("t").records == {"1": None}
        clock.advance(1)
        assert len(store.expire()) == 2

    async def test_joining_again_refreshes(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        clock.advance(TTL - 1)
        store.join("s", "phone", "1")
        clock.advance(TTL - 1)
        assert store.expire() == []

    async def test_an_id_leaves_when_its_last_session_expires(
        self, store: PresenceStore, clock: Clock, ear: Ear
    ) -> None:
        store.join("s", "phone", "1")
        clock.advance(1)
        store.join("s", "desk", "1")
        clock.advance(TTL - 1)
        assert store.expire() == []
        assert await ear.heard() == [joined("1")]
        clock.advance(1)
        assert store.expire() == [left("1")]
        assert await ear.heard() == [left("1")]

    async def test_a_session_that_expired_is_not_refreshed_back(
        self, store: PresenceStore, clock: Clock, ear: Ear
    ) -> None:
        store.join("s", "phone", "1")
        clock.advance(TTL)
        store.expire()
        assert store.refresh({"s": ["phone"]}).unknown == [("s", "phone")]
        assert store.info("s").total == 0
        assert await ear.heard() == [joined("1"), left("1")]

    async def test_until_it_is_swept_a_session_can_be_refreshed(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        clock.advance(TTL * 100)
        assert store.refresh({"s": ["phone"]}).unknown == []
        assert store.expire() == []

    def test_whoever_asks_may_leave_out_those_who_wait_to_be_swept(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone1", "1")
        store.join("s", "phone2", "2")
        store.join("t", "phone1", "1")
        clock.advance(1)
        store.join("s", "desk2", "2", "Bob")
        clock.advance(TTL - 1)
        assert store.info("s") == PresenceInfo(2, {"1": None, "2": "Bob"})
        assert store.info("s", overdue=False) == PresenceInfo(1, {"2": "Bob"})
        assert store.info("s", overdue=False, records=False) == PresenceInfo(1, None)
        clock.advance(1)
        assert store.info("s", overdue=False) == PresenceInfo(0, {})
        assert store.info("s", records=False) == PresenceInfo(2, None)


class TestIncarnation:
    def test_is_the_same_as_long_as_the_data_are(self, store: PresenceStore, clock: Clock) -> None:
        incarnation = store.refresh({"s": ()}).incarnations["s"]
        assert incarnation
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        clock.advance(KEPT)
        store.expire()
        assert store.info("s").incarnation == incarnation
        assert store.refresh({"s": ["phone"], "t": ()}).incarnations["s"] == incarnation


class TestLeftWithin:
    def test_who_left_within_a_time_and_is_not_back(self, store: PresenceStore, clock: Clock) -> None:
        for id_ in ("1", "2", "3"):
            store.join("s", f"phone{id_}", id_)
        store.leave("s", "phone3")
        clock.advance(1)
        store.leave("s", "phone1")
        store.leave("s", "phone2")
        store.join("s", "desk2", "2")
        assert store.left_within("s", 0) == ["1"]
        assert store.left_within("s", 1) == ["3", "1"]
        clock.advance(1)
        assert store.left_within("s", 0.5) == []
        assert store.left_within("unknown", 10) == []

    def test_who_left_twice_counts_from_the_last_time(self, store: PresenceStore, clock: Clock) -> None:
        for _ in range(2):
            clock.advance(1)
            store.join("s", "phone", "1")
            store.leave("s", "phone")
        assert store.left_within("s", 0.5) == ["1"]

    def test_what_a_client_may_not_have_heard_is_known_as_long_as_its_session(
        self, store: PresenceStore, clock: Clock
    ) -> None:
        store.join("s", "phone", "1")
        store.join("s", "desk", "2")
        store.leave("s", "phone")
        clock.advance(KEPT + UNHEARD_TIME)
        store.expire()
        assert store.left_within("s", KEPT * 10) == ["2", "1"] or store.left_within("s", KEPT * 10) == ["1", "2"]
        clock.advance(1)
        store.expire()
        assert store.left_within("s", KEPT * 10) == ["2"]


class TestListening:
    async def test_a_listener_is_never_called_from_inside_another_call(self, store: PresenceStore) -> None:
        inside: list[bool] = []
        calling = False
        ear = await listen(store, "s", deliver=lambda event: inside.append(calling))
        calling = True
        store.join("s", "phone", "1")
        calling = False
        await ear.heard()
        assert inside == [False]
        await ear.listener.close()

    async def test_events_from_other_threads_come_on_the_loop(self, store: PresenceStore) -> None:
        threads: list[threading.Thread] = []
        ear = await listen(store, "s", deliver=lambda event: threads.append(threading.current_thread()))
        await asyncio.to_thread(store.join, "s", "phone", "1")
        await ear.heard()
        assert threads == [threading.current_thread()]
        await ear.listener.close()

    async def test_every_listener_hears_an_event_of_its_own(self, store: PresenceStore) -> None:
        heard: list[PresenceEvent] = []

        def spoil(event: PresenceEvent) -> None:
            heard.append(event)
            event.info.append("spoilt")

        ears = [await listen(store, "s", deliver=spoil) for _ in range(2)]
        caused = store.join("s", "phone", "1", [])
        for ear in ears:
            await ear.heard()
        assert [event.info for event in heard] == [["spoilt"], ["spoilt"]]
        assert caused == [joined("1", [])]
        for ear in ears:
            await ear.listener.close()

    async def test_only_the_streams_that_were_subscribed_to_are_heard(self, store: PresenceStore) -> None:
        ear = await listen(store, "s")
        store.join("t", "phone", "1")
        store.join("s", "phone", "1")
        assert await ear.heard() == [joined("1")]
        await ear.listener.close()

    async def test_nothing_is_heard_after_the_end(self, store: PresenceStore, ear: Ear) -> None:
        store.join("s", "phone", "1")
        await ear.listener.unsubscribe("s")
        store.leave("s", "phone")
        assert left("1") not in await ear.heard()
        await ear.listener.unsubscribe("s")
        await ear.listener.subscribe("s")
        store.join("s", "phone", "2")
        assert await ear.heard() == [joined("2")]

    async def test_a_closed_loop_does_not_break_the_others(self, store: PresenceStore, ear: Ear) -> None:
        def listen_and_die() -> None:
            async def start() -> None:
                await store.listen(lambda event: None).subscribe("s")

            asyncio.run(start())

        await asyncio.to_thread(listen_and_die)
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        assert await ear.heard() == [joined("1"), left("1")]

    async def test_many_threads_at_once_keep_joins_and_leaves_in_order(self, store: PresenceStore, ear: Ear) -> None:
        caused: list[PresenceEvent] = []

        def come_and_go(session: str) -> None:
            for _ in range(50):
                caused.extend(store.join("s", session, "1"))
                caused.extend(store.leave("s", session))

        await asyncio.gather(*(asyncio.to_thread(come_and_go, f"phone{number}") for number in range(4)))
        events = [event.type for event in await ear.heard()]
        assert events == ["join", "leave"] * (len(events) // 2)
        assert events
        assert len(caused) == len(events)
        assert store.info("s").total == 0


class TestMemoryStore:
    def test_each_has_a_memory_of_its_own(self, clock: Clock) -> None:
        names = {MemoryPresenceStore(CableSettings(), clock=clock).info("s").incarnation for _ in range(3)}
        assert len(names) == 3
        assert "" not in names

    def test_nothing_is_kept_of_those_who_are_gone(self, clock: Clock) -> None:
        store = MemoryPresenceStore(CableSettings(presence_ttl=TTL, sessions_ttl=KEPT), clock=clock)
        for number in range(100):
            store.join(f"s{number}", "phone", "1")
            store.leave(f"s{number}", "phone")
            store.join(f"s{number}", "phone", "1")
        clock.advance(TTL)
        store.expire()
        clock.advance(store.memory + 1)
        store.expire()
        assert (store._streams, len(store._sessions), len(store._tombstones)) == ({}, 0, 0)
