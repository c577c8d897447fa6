"""What every presence store does (presence/base.py)."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from reliable_cable.conf import get_settings
from reliable_cable.presence.base import PresenceEvent, PresenceInfo, PresenceStore
from reliable_cable.presence.memory import MemoryPresenceStore

from .conftest import Clock

TTL = 15.0
KEPT = 300.0


@pytest.fixture(params=[MemoryPresenceStore])
def store(request: pytest.FixtureRequest, clock: Clock) -> PresenceStore:
    store: PresenceStore = request.param(replace(get_settings(), presence_ttl=TTL, sessions_ttl=KEPT), clock=clock)
    return store


def joined(id_: str, info: Any = None, stream: str = "s") -> PresenceEvent:
    return PresenceEvent(stream, "join", id_, info)


def left(id_: str, info: Any = None, stream: str = "s") -> PresenceEvent:
    return PresenceEvent(stream, "leave", id_, info)


async def settle() -> None:
    """Let the callbacks run that are due."""
    for _ in range(5):
        await asyncio.sleep(0)


class Ear:
    """Gathers a store's events."""

    def __init__(self, store: PresenceStore) -> None:
        self._events: list[PresenceEvent] = []
        self.stop = store.listen(self._events.append)

    async def heard(self) -> list[PresenceEvent]:
        """Return what happened since the last call."""
        await settle()
        events = list(self._events)
        self._events.clear()
        return events


@pytest.fixture
async def ear(store: PresenceStore) -> Ear:
    return Ear(store)


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
        await store.arefresh([("s", "phone")])
        clock.advance(TTL - 1)
        assert await store.aexpire() == 0
        clock.advance(1)
        assert await store.aexpire() == 1
        assert await store.aleft_since("s", clock() - KEPT) == ["2", "1"]
        assert await ear.heard() == [joined("1", "Ann"), joined("2"), left("2"), left("1", "Ann")]


class TestExpiry:
    async def test_a_session_that_is_not_refreshed_leaves_once(
        self, store: PresenceStore, clock: Clock, ear: Ear
    ) -> None:
        store.join("s", "phone", "1")
        clock.advance(TTL - 1)
        assert store.expire() == 0
        clock.advance(1)
        assert store.expire() == 1
        assert store.expire() == 0
        assert await ear.heard() == [joined("1"), left("1")]
        assert store.info("s").total == 0

    async def test_refreshed_sessions_stay(self, store: PresenceStore, clock: Clock, ear: Ear) -> None:
        store.join("s", "phone", "1")
        store.join("s", "desk", "2")
        store.join("t", "phone", "1")
        clock.advance(TTL - 1)
        store.refresh([("s", "phone"), ("t", "phone"), ("s", "unknown")])
        clock.advance(TTL - 1)
        assert store.expire() == 1
        assert store.info("s").records == {"1": None}
        assert store.info("t").records == {"1": None}
        clock.advance(1)
        assert store.expire() == 2

    async def test_joining_again_refreshes(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        clock.advance(TTL - 1)
        store.join("s", "phone", "1")
        clock.advance(TTL - 1)
        assert store.expire() == 0

    async def test_an_id_leaves_when_its_last_session_expires(
        self, store: PresenceStore, clock: Clock, ear: Ear
    ) -> None:
        store.join("s", "phone", "1")
        clock.advance(1)
        store.join("s", "desk", "1")
        clock.advance(TTL - 1)
        assert store.expire() == 1
        assert await ear.heard() == [joined("1")]
        clock.advance(1)
        assert store.expire() == 1
        assert await ear.heard() == [left("1")]

    async def test_a_session_that_expired_is_not_refreshed_back(
        self, store: PresenceStore, clock: Clock, ear: Ear
    ) -> None:
        store.join("s", "phone", "1")
        clock.advance(TTL)
        store.expire()
        store.refresh([("s", "phone")])
        assert store.info("s").total == 0
        assert await ear.heard() == [joined("1"), left("1")]


class TestLeftSince:
    def test_who_left_since_a_time_and_is_not_back(self, store: PresenceStore, clock: Clock) -> None:
        start = clock()
        for id_ in ("1", "2", "3"):
            store.join("s", f"phone{id_}", id_)
        store.leave("s", "phone3")
        clock.advance(1)
        store.leave("s", "phone1")
        store.leave("s", "phone2")
        store.join("s", "desk2", "2")
        assert store.left_since("s", start + 1) == ["1"]
        assert store.left_since("s", start) == ["3", "1"]
        assert store.left_since("s", start + 2) == []
        assert store.left_since("unknown", start) == []

    def test_who_left_twice_counts_from_the_last_time(self, store: PresenceStore, clock: Clock) -> None:
        start = clock()
        for _ in range(2):
            store.join("s", "phone", "1")
            store.leave("s", "phone")
            clock.advance(1)
        assert store.left_since("s", start + 1) == ["1"]

    def test_what_is_longer_ago_than_sessions_are_kept_is_not_known(self, store: PresenceStore, clock: Clock) -> None:
        start = clock()
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        clock.advance(KEPT)
        store.expire()
        assert store.left_since("s", start) == ["1"]
        clock.advance(1)
        store.expire()
        assert store.left_since("s", start) is None
        assert store.left_since("s", start + 1) == []


class TestListening:
    async def test_a_listener_is_never_called_from_inside_another_call(self, store: PresenceStore, ear: Ear) -> None:
        inside: list[bool] = []
        calling = False
        store.listen(lambda event: inside.append(calling))
        calling = True
        store.join("s", "phone", "1")
        calling = False
        await settle()
        assert inside == [False]

    async def test_events_from_other_threads_come_on_the_loop(self, store: PresenceStore) -> None:
        threads: list[threading.Thread] = []
        came = asyncio.Event()

        def deliver(event: PresenceEvent) -> None:
            threads.append(threading.current_thread())
            came.set()

        store.listen(deliver)
        await asyncio.to_thread(store.join, "s", "phone", "1")
        await asyncio.wait_for(came.wait(), 5)
        assert threads == [threading.current_thread()]

    async def test_every_listener_hears_an_event_of_its_own(self, store: PresenceStore) -> None:
        heard: list[PresenceEvent] = []

        def spoil(event: PresenceEvent) -> None:
            heard.append(event)
            event.info.append("spoilt")

        store.listen(spoil)
        store.listen(spoil)
        store.join("s", "phone", "1", [])
        await settle()
        assert [event.info for event in heard] == [["spoilt"], ["spoilt"]]

    async def test_nothing_is_heard_after_the_end(self, store: PresenceStore, ear: Ear) -> None:
        store.join("s", "phone", "1")
        ear.stop()
        store.leave("s", "phone")
        ear.stop()
        assert await ear.heard() == []

    async def test_a_closed_loop_does_not_break_the_others(self, store: PresenceStore, ear: Ear) -> None:
        def listen_and_die() -> None:
            async def listen() -> None:
                store.listen(lambda event: None)

            asyncio.run(listen())

        await asyncio.to_thread(listen_and_die)
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        assert await ear.heard() == [joined("1"), left("1")]

    async def test_many_threads_at_once_keep_joins_and_leaves_in_order(self, store: PresenceStore, ear: Ear) -> None:
        def come_and_go(session: str) -> None:
            for _ in range(50):
                store.join("s", session, "1")
                store.leave("s", session)

        await asyncio.gather(*(asyncio.to_thread(come_and_go, f"phone{number}") for number in range(4)))
        events = [event.type for event in await ear.heard()]
        assert events == ["join", "leave"] * (len(events) // 2)
        assert events
        assert store.info("s").total == 0


class TestMemoryStore:
    def test_each_has_a_memory_of_its_own(self, clock: Clock) -> None:
        names = {MemoryPresenceStore(get_settings(), clock=clock).incarnation for _ in range(3)}
        assert len(names) == 3
        assert "" not in names

    def test_nothing_is_kept_of_those_who_are_gone(self, clock: Clock) -> None:
        store = MemoryPresenceStore(replace(get_settings(), presence_ttl=TTL, sessions_ttl=KEPT), clock=clock)
        for number in range(100):
            store.join(f"s{number}", "phone", "1")
            store.leave(f"s{number}", "phone")
            store.join(f"s{number}", "phone", "1")
        clock.advance(TTL)
        store.expire()
        clock.advance(KEPT + 1)
        store.expire()
        assert (store._streams, len(store._sessions), len(store._tombstones)) == ({}, 0, 0)
