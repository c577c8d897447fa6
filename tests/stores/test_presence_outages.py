"""Presence stores after an outage, in which no server could refresh its members."""

from __future__ import annotations

import pytest

from reliable_cable.stores.presence.base import PresenceStore

from .conftest import PRESENCE_STORES, Clock
from .presence import TTL, elapse, left

pytestmark = pytest.mark.parametrize("alias", PRESENCE_STORES, indirect=True)


@pytest.fixture
def store(presence_store: PresenceStore) -> PresenceStore:
    return presence_store


class TestAfterAnOutage:
    """If `expire` was not called for some time, the store assumes an outage, in which no members could be refreshed."""

    def test_members_of_a_process_that_returns_late_do_not_leave(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "of one server", "1")
        store.join("s", "of another server", "2")
        elapse(store, clock, refreshed=["of one server", "of another server"])
        clock.advance(TTL * 2)
        # This server has just started, and does not know of the outage.
        store.join("s", "of a new server", "3")
        assert store.expire() == []
        clock.advance(TTL / 3)
        assert store.expire() == []
        assert elapse(store, clock, refreshed=["of one server", "of another server", "of a new server"]) == []
        assert store.info("s").total == 3

    def test_members_that_do_not_return_leave_one_presence_ttl_later(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "here", "1")
        store.join("s", "killed", "2")
        elapse(store, clock, refreshed=["here", "killed"])
        clock.advance(TTL * 2)
        store.refresh({"s": ["here"]})
        assert store.expire() == []
        clock.advance(TTL / 3)
        store.refresh({"s": ["here"]})
        assert store.expire() == []
        assert elapse(store, clock, refreshed=["here"]) == [left("2")]

    def test_members_that_joined_before_any_search_do_not_leave(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "of one server", "1")
        store.join("s", "of another server", "2")
        clock.advance(TTL * 2)
        store.refresh({"s": ["of one server"]})
        assert store.expire() == []
        assert elapse(store, clock, refreshed=["of one server", "of another server"]) == []
        assert store.info("s").total == 2

    def test_members_that_joined_after_all_others_had_left_do_not_leave(
        self, store: PresenceStore, clock: Clock
    ) -> None:
        store.join("s", "of one server", "1")
        elapse(store, clock, TTL / 3)
        store.leave("s", "of one server")
        elapse(store, clock, TTL / 3)
        store.join("s", "of another server", "2")
        clock.advance(TTL * 2)
        assert store.expire() == []
        assert elapse(store, clock, refreshed=["of another server"]) == []
        assert store.info("s").total == 1

    def test_members_that_joined_before_any_search_and_do_not_return_leave_later(
        self, store: PresenceStore, clock: Clock
    ) -> None:
        store.join("s", "here", "1")
        store.join("s", "killed", "2")
        clock.advance(TTL * 2)
        store.refresh({"s": ["here"]})
        assert store.expire() == []
        assert elapse(store, clock, refreshed=["here"]) == [left("2")]

    def test_members_of_a_killed_server_leave_in_time_while_other_servers_run(
        self, store: PresenceStore, clock: Clock
    ) -> None:
        store.join("s", "here", "1")
        store.join("s", "killed", "2")
        elapse(store, clock, refreshed=["here", "killed"])
        assert elapse(store, clock, refreshed=["here"]) == [left("2")]

    def test_a_time_without_members_is_not_an_outage(self, store: PresenceStore, clock: Clock) -> None:
        store.join("s", "phone", "1")
        store.expire()
        store.leave("s", "phone")
        store.expire()
        clock.advance(TTL * 10)
        store.join("s", "killed", "2")
        assert elapse(store, clock) == [left("2")]
