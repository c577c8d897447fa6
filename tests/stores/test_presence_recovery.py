"""The recovery of the presence service after its store failed or lost its data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest

from reliable_cable.concurrency.retrying import BACKGROUND_RETRY_DELAY
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.presence import LAST_ROUNDS, PresenceService
from reliable_cable.stores.presence.base import Member, PresenceEvent, PresenceStore
from reliable_cable.stores.presence.memory import MemoryPresenceStore

from .conftest import Clock
from .presence import TTL, Rounds, elapse, gathered, heard


@pytest.fixture
def store(memory_presence: PresenceStore) -> PresenceStore:
    return memory_presence


class Fails:
    """Makes methods of a store fail inside the context. With `done`, each method does its work before it fails."""

    def __init__(self, store: PresenceStore, *names: str, done: bool = False) -> None:
        self._store = store
        self._names = names
        self._done = done
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for name in self._names:
            real = getattr(self._store, name)

            def fail(*args: Any, real: Callable[..., Any] = real) -> None:
                if self._done:
                    real(*args)
                raise StoreError("gone")

            self._stack.enter_context(mock.patch.object(self._store, name, fail))

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def forget(store: PresenceStore) -> None:
    """Make a memory store lose its data."""
    assert isinstance(store, MemoryPresenceStore)
    store._sessions.clear()
    store._streams.clear()
    store._tombstones.clear()


class TestAStoreThatFails:
    async def test_a_failing_store_is_logged_once_and_retried_in_the_next_round(
        self,
        store: PresenceStore,
        service: PresenceService,
        rounds: Rounds,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        await service.join("s", "phone", "1", None)
        with Fails(store, "refresh"):
            for _ in range(2):
                clock.advance(TTL / 3)
                await rounds.next()
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        for _ in range(4):
            clock.advance(TTL / 3)
            await rounds.next()
        assert store.info("s").total == 1
        assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]

    async def test_the_store_gets_a_missed_join_later(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        with Fails(store, "join_all"):
            await service.join("s", "phone", "1", "Ann")
            await rounds.next()
        assert store.info("s").total == 0
        with gathered(service) as signals:
            await rounds.next()
            assert store.info("s").records == {"1": "Ann"}
            assert await signals() == [("join", "1")]

    async def test_the_store_gets_a_missed_info_later(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        await service.join("s", "phone", "1", "Ann")
        with Fails(store, "join_all"):
            await service.join("s", "phone", "1", "Anna")
        with gathered(service) as signals:
            await rounds.next()
            assert store.info("s").records == {"1": "Anna"}
            assert await signals() == []

    async def test_the_store_gets_a_missed_change_of_the_id_later(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        await service.join("s", "phone", "1", None)
        with Fails(store, "join_all"):
            await service.join("s", "phone", "2", None)
        with gathered(service) as signals:
            await rounds.next()
            assert store.info("s").records == {"2": None}
            assert await signals() == [("leave", "1"), ("join", "2")]

    async def test_a_join_without_a_response_is_announced_once(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        events = await heard(store)
        with Fails(store, "join_all", done=True):
            await service.join("s", "phone", "1", None)
        await rounds.next()
        assert events == [PresenceEvent("s", "join", "1")]

    async def test_the_store_gets_no_missed_join_of_a_member_that_has_left(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        with Fails(store, "join_all"):
            await service.join("s", "phone", "1", None)
        await service.leave("s", "phone")
        await rounds.next()
        assert store.info("s").total == 0

    async def test_a_failing_store_is_retried_more_often(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        # A round that failed is repeated soon, so that members are refreshed before they expire.
        await service.join("s", "phone", "1", None)
        with Fails(store, "refresh"):
            await rounds.next()
            await rounds.next()
        await rounds.next()
        assert rounds.slept == [TTL / 3, BACKGROUND_RETRY_DELAY, BACKGROUND_RETRY_DELAY, TTL / 3]

    async def test_rounds_continue_until_released_members_have_left(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.join("s", "phone", "1", None)
        service.release("s", "phone")
        with Fails(store, "expire"):
            for _ in range(LAST_ROUNDS + 1):
                clock.advance(TTL / 3)
                await rounds.next()
        for _ in range(LAST_ROUNDS):
            clock.advance(TTL / 3)
            await rounds.next()
        assert store.info("s").total == 0


class TestAnOutage:
    async def test_an_outage_removes_no_members_of_other_servers(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        events = await heard(store)
        await service.join("s", "phone", "1", None)
        store.join("s", "of another server", "2")
        await rounds.next()
        with Fails(store, "refresh", "expire"):
            clock.advance(TTL * 2)
            await rounds.next()
        # This server has just started, and has not seen the outage.
        started = PresenceService(store, sleep=(its_rounds := Rounds()).sleep)
        await started.join("s", "of a new server", "3", None)
        await its_rounds.next()
        await rounds.next()
        store.refresh({"s": ["of another server"]})
        for _ in range(4):
            clock.advance(TTL / 3)
            await rounds.next()
            await its_rounds.next()
            store.refresh({"s": ["of another server"]})
        assert [(event.type, event.id) for event in events] == [("join", id_) for id_ in "123"]
        await started.stop()


class TestDataThatWereLost:
    async def test_lost_members_join_again_and_are_announced_without_a_signal(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        await service.join("s", "phone1", "1", "Ann")
        await service.join("s", "phone2", "2", None)
        events = await heard(store)
        forget(store)
        with gathered(service) as signals:
            await rounds.next()
            assert store.info("s").records == {"1": "Ann", "2": None}
            assert events == [PresenceEvent("s", "join", "1", "Ann"), PresenceEvent("s", "join", "2")]
            assert await signals() == []

    async def test_an_expired_member_joins_again_with_a_signal(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.join("s", "phone", "1", None)
        elapse(store, clock)
        with gathered(service) as signals:
            await rounds.next()
            assert store.info("s").total == 1
            assert await signals() == [("join", "1")]

    @pytest.mark.parametrize("change", ["leave", "release", "join"])
    async def test_a_change_during_a_rejoin_is_not_overwritten(
        self, store: PresenceStore, service: PresenceService, change: str
    ) -> None:
        await service.join("s", "phone", "1", None)
        forget(store)
        real = store.ajoin_all

        async def slow(members: Sequence[Member]) -> list[PresenceEvent]:
            # The change is made before the call of `ajoin_all` in the round.
            with mock.patch.object(store, "ajoin_all", real):
                if change == "leave":
                    await service.leave("s", "phone")
                elif change == "release":
                    service.release("s", "phone")
                else:
                    await service.join("s", "phone", "2", None)
            return await real(members)

        with mock.patch.object(store, "ajoin_all", slow):
            await service.round()
        # A released member stays until its expiry, because it may return before that.
        assert store.info("s").records == {"leave": {}, "release": {"1": None}, "join": {"2": None}}[change]


async def test_a_leave_is_not_overwritten_by_the_join_before_it(store: PresenceStore, service: PresenceService) -> None:
    real = store.ajoin_all

    async def slow(members: Sequence[Member]) -> list[PresenceEvent]:
        await service.leave("s", "phone")
        return await real(members)

    with mock.patch.object(store, "ajoin_all", slow):
        await service.join("s", "phone", "1", None)
    assert store.info("s").total == 0
