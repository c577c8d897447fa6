"""The behaviour of all presence stores (stores/presence/base.py)."""

from __future__ import annotations

from typing import Any

import pytest

from reliable_cable.stores.presence.base import (
    SEARCH_INTERVAL,
    UNHEARD_TIME,
    Member,
    PresenceInfo,
    PresenceStore,
)

from .conftest import PRESENCE_STORES, Clock
from .presence import KEPT, TTL, Recorder, elapse, joined, left

pytestmark = pytest.mark.parametrize("alias", PRESENCE_STORES, indirect=True)


@pytest.fixture
def store(presence_store: PresenceStore) -> PresenceStore:
    return presence_store


class TestMembers:
    async def test_the_first_session_of_an_id_joins_and_the_last_one_leaves(
        self, store: PresenceStore, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1", {"name": "Ann"})
        store.join("s", "desk", "1", {"name": "Ann"})
        store.leave("s", "phone")
        assert await recorder.events() == [joined("1", {"name": "Ann"})]
        assert store.info("s") == PresenceInfo(1, {"1": {"name": "Ann"}})
        store.leave("s", "desk")
        assert await recorder.events() == [left("1", {"name": "Ann"})]
        assert store.info("s") == PresenceInfo(0, {})

    async def test_joining_again_with_another_info_updates_the_record_without_an_event(
        self, store: PresenceStore, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1", {"name": "Ann"})
        store.join("s", "phone", "1", {"name": "Anna"})
        assert await recorder.events() == [joined("1", {"name": "Ann"})]
        assert store.info("s").records == {"1": {"name": "Anna"}}

    async def test_a_session_that_joins_with_another_id_leaves_the_first_id(
        self, store: PresenceStore, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1")
        store.join("s", "phone", "2")
        assert await recorder.events() == [joined("1"), left("1"), joined("2")]
        assert store.info("s").records == {"2": None}

    async def test_a_second_or_unknown_leave_is_ignored(self, store: PresenceStore, recorder: Recorder) -> None:
        store.leave("s", "phone")
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        store.leave("s", "phone")
        store.leave("other", "phone")
        assert await recorder.events() == [joined("1"), left("1")]

    def test_streams_have_separate_members(self, store: PresenceStore) -> None:
        store.join("s", "phone", "1")
        store.join("t", "phone", "2")
        store.leave("t", "phone")
        assert store.info("s").records == {"1": None}
        assert store.info("t").records == {}

    def test_records_are_in_the_order_of_joins(self, store: PresenceStore) -> None:
        for id_ in ("3", "1", "2"):
            store.join("s", f"phone{id_}", id_)
        store.join("s", "desk", "3")
        assert list(store.info("s").records or ()) == ["3", "1", "2"]

    def test_the_total_can_be_read_alone(self, store: PresenceStore) -> None:
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
        self, store: PresenceStore, recorder: Recorder, info: object
    ) -> None:
        with pytest.raises((TypeError, ValueError)):
            store.join("s", "phone", "1", info)
        assert store.info("s").total == 0
        assert await recorder.events() == []

    async def test_the_async_twins_do_the_same(self, store: PresenceStore, clock: Clock, recorder: Recorder) -> None:
        await store.ajoin_all([Member("s", "phone", "1", "Ann")])
        await store.ajoin_all([Member("s", "desk", "2")])
        assert await store.ainfo("s") == PresenceInfo(2, {"1": "Ann", "2": None})
        await store.aleave("s", "desk")
        elapse(store, clock, TTL - 1)
        assert (await store.arefresh({"s": ["phone", "desk"]})).unknown == [("s", "desk")]
        elapse(store, clock, TTL - 1)
        assert await store.aexpire() == []
        clock.advance(1)
        assert await store.aexpire() == [left("1", "Ann")]
        assert await store.aleft_within("s", KEPT) == ["2", "1"]
        assert await store.ajoin_all([Member("s", "phone", "1", "Ann", joined=True)]) == [joined("1", "Ann")]
        await store.aleave("s", "phone")
        assert await recorder.events() == [
            joined("1", "Ann"),
            joined("2"),
            left("2"),
            left("1", "Ann"),
            joined("1", "Ann"),
            left("1", "Ann"),
        ]


class TestWhatACallCaused:
    def test_an_event_is_returned_only_to_the_call_that_caused_it(self, store: PresenceStore) -> None:
        assert store.join("s", "phone", "1", "Ann") == [joined("1", "Ann")]
        assert store.join("s", "desk", "1", "Anna") == []
        assert store.join("s", "desk", "1", "Anna") == []
        assert store.leave("s", "phone") == []
        assert store.leave("s", "phone") == []
        assert store.join("s", "desk", "2", "Bob") == [left("1", "Anna"), joined("2", "Bob")]
        assert store.leave("s", "desk") == [left("2", "Bob")]

    def test_expire_returns_all_leaves(self, store: PresenceStore, clock: Clock) -> None:
        for stream in ("s", "t"):
            for number in range(3):
                store.join(stream, f"phone{number}", str(number))
        events = elapse(store, clock)
        assert sorted((event.stream, event.type, event.id) for event in events) == [
            (stream, "leave", str(number)) for stream in ("s", "t") for number in range(3)
        ]
        assert store.expire() == []

    async def test_a_join_after_a_loss_of_data_is_not_returned(self, store: PresenceStore, recorder: Recorder) -> None:
        assert store.join_all([Member("s", "phone", "1", "Ann", joined=True)]) == []
        assert store.join_all([Member("s", "desk", "2", joined=False)]) == [joined("2")]
        assert store.info("s").records == {"1": "Ann", "2": None}
        assert await recorder.events() == [joined("1", "Ann"), joined("2")], "all rosters are complete again"

    async def test_a_join_after_an_expiry_is_returned(
        self, store: PresenceStore, clock: Clock, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1")
        elapse(store, clock)
        assert store.join_all([Member("s", "phone", "1", joined=True)]) == [joined("1")]
        assert await recorder.events() == [joined("1"), left("1"), joined("1")]

    async def test_a_present_session_joins_again_without_an_event(
        self, store: PresenceStore, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1", "Ann")
        assert store.join_all([Member("s", "phone", "1", "Anna", joined=True), Member("s", "desk", "1", "Anne")]) == []
        store.leave("s", "phone")
        assert store.info("s").records == {"1": "Anne"}
        assert await recorder.events() == [joined("1", "Ann")]


class TestExpiry:
    async def test_a_session_that_is_not_refreshed_leaves_once(
        self, store: PresenceStore, clock: Clock, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1")
        assert elapse(store, clock, TTL - 1) == []
        assert elapse(store, clock, 1) == [left("1")]
        assert store.expire() == []
        assert await recorder.events() == [joined("1"), left("1")]
        assert store.info("s").total == 0

    async def test_refreshed_sessions_stay(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        store.join("s", "desk", "2")
        store.join("t", "phone", "1")
        elapse(store, clock, TTL - 1)
        refreshed = store.refresh({"s": ["phone", "unknown"], "t": ["phone"]})
        assert refreshed.unknown == [("s", "unknown")]
        assert elapse(store, clock, TTL - 1) == [left("2")]
        assert store.info("s").records == {"1": None}
        assert store.info("t").records == {"1": None}
        clock.advance(1)
        assert len(store.expire()) == 2

    async def test_joining_again_refreshes(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        elapse(store, clock, TTL - 1)
        store.join("s", "phone", "1")
        assert elapse(store, clock, TTL - 1) == []

    async def test_an_id_leaves_when_its_last_session_expires(
        self, store: PresenceStore, clock: Clock, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1")
        clock.advance(1)
        store.join("s", "desk", "1")
        assert elapse(store, clock, TTL - 1) == []
        assert await recorder.events() == [joined("1")]
        assert elapse(store, clock, 1) == [left("1")]
        assert await recorder.events() == [left("1")]

    async def test_an_expired_and_removed_session_cannot_be_refreshed(
        self, store: PresenceStore, clock: Clock, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1")
        elapse(store, clock)
        assert store.refresh({"s": ["phone"]}).unknown == [("s", "phone")]
        assert store.info("s").total == 0
        assert await recorder.events() == [joined("1"), left("1")]

    async def test_an_expired_session_can_be_refreshed_before_it_is_removed(
        self, store: PresenceStore, clock: Clock
    ) -> None:
        store.join("s", "phone", "1")
        elapse(store, clock, TTL - 1)
        clock.advance(TTL / 3)
        assert store.info("s", overdue=False).total == 0
        assert store.refresh({"s": ["phone"]}).unknown == []
        assert store.expire() == []

    def test_a_read_can_leave_out_expired_sessions(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone1", "1")
        store.join("s", "phone2", "2", "Bob")
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


class TestShorten:
    """Sessions whose pages were closed expire after PRESENCE_GRACE, which is 3 seconds."""

    async def test_a_shortened_session_expires_after_the_grace(
        self, store: PresenceStore, clock: Clock, recorder: Recorder
    ) -> None:
        store.join("s", "phone", "1")
        store.join("s", "desk", "2")
        store.shorten("s", "phone")
        clock.advance(3 - SEARCH_INTERVAL)
        assert store.expire() == []
        clock.advance(SEARCH_INTERVAL)
        assert store.info("s", overdue=False).records == {"2": None}
        assert store.expire() == [left("1")]
        assert await recorder.events() == [joined("1"), joined("2"), left("1")]

    def test_an_id_stays_while_another_session_has_it(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "before the reload", "1")
        store.shorten("s", "before the reload")
        store.join("s", "after the reload", "1")
        clock.advance(3)
        assert store.expire() == []
        assert store.info("s").records == {"1": None}

    def test_an_earlier_expiry_stays(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        elapse(store, clock, TTL - 1)
        store.shorten("s", "phone")
        assert elapse(store, clock, 1) == [left("1")]

    def test_a_second_call_changes_nothing(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        for _ in range(3):
            store.shorten("s", "phone")
            clock.advance(1)
        assert store.expire() == [left("1")]

    def test_sessions_that_are_refreshed_or_join_again_stay(self, store: PresenceStore, clock: Clock) -> None:
        for session in ("phone", "desk"):
            store.join("s", session, session)
            store.shorten("s", session)
        store.refresh({"s": ["phone"]})
        store.join("s", "desk", "desk")
        assert elapse(store, clock, TTL - 1) == []

    def test_a_session_that_takes_the_place_of_another_one_stays(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        store.shorten("s", "phone")
        store.join_all([Member("s", "phone again", "1", replaces="phone")])
        store.shorten("s", "phone")
        assert elapse(store, clock, TTL - 1) == []

    def test_an_unknown_session_is_ignored(self, store: PresenceStore) -> None:
        store.shorten("s", "phone")
        assert store.info("s").total == 0


class TestIncarnation:
    def test_the_incarnation_stays_the_same_while_the_data_exist(self, store: PresenceStore, clock: Clock) -> None:
        incarnation = store.refresh({"s": ()}).incarnations["s"]
        assert incarnation
        store.join("s", "phone", "1")
        store.leave("s", "phone")
        clock.advance(KEPT)
        store.expire()
        assert store.info("s").incarnation == incarnation
        assert store.refresh({"s": ["phone"], "t": ()}).incarnations["s"] == incarnation


class TestLeftWithin:
    def test_left_within_returns_ids_that_did_not_return(self, store: PresenceStore, clock: Clock) -> None:
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

    def test_left_within_counts_from_the_last_leave(self, store: PresenceStore, clock: Clock) -> None:
        for _ in range(2):
            clock.advance(1)
            store.join("s", "phone", "1")
            store.leave("s", "phone")
        assert store.left_within("s", 0.5) == ["1"]

    def test_leaves_are_remembered_as_long_as_a_session_can_be_restored(
        self, store: PresenceStore, clock: Clock
    ) -> None:
        store.join("s", "phone", "1")
        store.join("s", "desk", "2")
        store.leave("s", "phone")
        elapse(store, clock, KEPT + UNHEARD_TIME)
        assert store.left_within("s", KEPT * 10) == ["1", "2"]
        elapse(store, clock, 1)
        assert store.left_within("s", KEPT * 10) == ["2"]
