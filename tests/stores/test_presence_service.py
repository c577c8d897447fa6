"""Tests of the service that keeps members present and sends the presence signals, and of `presence_for`."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextvars import ContextVar
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.test import override_settings

from reliable_cable import InvalidStreamName
from reliable_cable.hub.presence import LAST_ROUNDS, SWEEP_MARGIN, PresenceService
from reliable_cable.presence import presence_for
from reliable_cable.signals import presence_joined, presence_left
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.presence.base import PresenceEvent, PresenceInfo, PresenceStore

from .conftest import Clock
from .presence import TTL, Rounds, heard, receiving, settle


@pytest.fixture
def store(memory_presence: PresenceStore) -> PresenceStore:
    return memory_presence


class TestService:
    async def test_members_are_refreshed_in_one_call_three_times_within_their_time_to_live(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        for id_ in ("1", "2"):
            await service.join("s", f"phone{id_}", id_, None)
        with mock.patch.object(store, "refresh", wraps=store.refresh) as refresh:
            for _ in range(10):
                clock.advance(TTL / 3)
                await rounds.next()
        assert refresh.call_count == 10
        assert refresh.call_args.args[0] == {"s": ["phone1", "phone2"]}
        assert set(rounds.slept) == {TTL / 3}
        assert store.info("s").total == 2

    async def test_a_released_member_leaves_when_it_expires(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.join("s", "phone", "1", None)
        service.release("s", "phone")
        for expected in (1, 1, 0):
            clock.advance(TTL / 3)
            await rounds.next()
            assert store.info("s").total == expected

    async def test_a_member_whose_page_was_closed_leaves_after_the_grace(
        self, store: PresenceStore, clock: Clock
    ) -> None:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            if seconds == TTL / 3:
                await asyncio.Event().wait()  # no further round begins during the test
            slept.append(seconds)
            await asyncio.sleep(seconds)
            clock.advance(seconds)

        store.settings = replace(store.settings, presence_grace=0.01)
        service = PresenceService(store, sleep=sleep)
        events = await heard(store)
        for id_ in ("1", "2"):
            await service.join("s", f"phone{id_}", id_, None)
        await service.leave_soon("s", "phone1")
        assert service._sweeps is not None
        await asyncio.wait_for(service._sweeps, 10)
        assert list(store.info("s").records or ()) == ["2"]
        assert max(slept) <= 0.01 + SWEEP_MARGIN
        await settle()
        assert events[-1] == PresenceEvent("s", "leave", "1")
        await service.stop()

    async def test_a_refresh_that_is_running_does_not_keep_a_member_whose_page_was_closed(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.join("s", "phone", "1", None)
        refreshing, finish = asyncio.Event(), asyncio.Event()
        refresh = store.arefresh

        async def slow(held: Any) -> Any:
            refreshing.set()
            await finish.wait()
            return await refresh(held)

        with mock.patch.object(store, "arefresh", slow):
            task = asyncio.ensure_future(service.round())
            await refreshing.wait()
            leaving = asyncio.ensure_future(service.leave_soon("s", "phone"))
            await settle()
            finish.set()
            await asyncio.gather(task, leaving)
        clock.advance(store.settings.presence_grace)
        assert store.info("s", overdue=False).total == 0

    async def test_a_suspended_process_keeps_its_members(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        events = await heard(store)
        await service.join("s", "phone", "1", None)
        clock.advance(TTL * 100)
        await rounds.next()
        assert events == [PresenceEvent("s", "join", "1")]

    async def test_a_member_that_cannot_be_encoded_affects_no_other_member(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        await service.join("s", "phone", "ann", None)
        with pytest.raises(TypeError):
            await service.join("s", "desk", "bob", object())
        store.leave("s", "phone")  # as if the store had lost this member
        await rounds.next()
        assert list(store.info("s").records or ()) == ["ann"]

    async def test_no_rounds_are_made_without_members(self, service: PresenceService, rounds: Rounds) -> None:
        await settle()
        assert not service.running
        await service.join("s", "phone", "1", None)
        for _ in range(LAST_ROUNDS + 1):
            await rounds.next()
        assert service.running
        service.release("s", "phone")
        for _ in range(LAST_ROUNDS):
            assert service.running
            await rounds.next()
        assert not service.running

    async def test_rounds_begin_again_with_the_next_member(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.join("s", "phone", "1", None)
        await service.leave("s", "phone")
        for _ in range(LAST_ROUNDS):
            await rounds.next()
        assert not service.running
        await service.join("s", "desk", "1", None)
        for _ in range(5):
            clock.advance(TTL / 3)
            await rounds.next()
        assert store.info("s").total == 1

    async def test_expired_members_of_killed_servers_are_removed_while_a_stream_is_served(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.open("s")
        store.join("s", "killed", "1")
        for _ in range(3):
            clock.advance(TTL / 3)
            await rounds.next()
        assert store.info("s").total == 0
        await service.close("s")
        for _ in range(LAST_ROUNDS):
            await rounds.next()
        assert not service.running

    async def test_no_rounds_are_made_after_stop(self, service: PresenceService) -> None:
        await service.join("s", "phone", "1", None)
        await service.stop()
        assert not service.running
        await service.join("s", "phone", "1", None)
        await service.open("s")
        assert not service.running
        await service.stop()


class TestSignals:
    async def test_receivers_are_called_once_in_order_and_in_another_thread(
        self, store: PresenceStore, service: PresenceService
    ) -> None:
        got: list[tuple[object, ...]] = []
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_join(sender: object, *, stream: str, id: str, info: Any, **kwargs: Any) -> None:  # noqa: A002
            got.append(("join", sender, stream, id, info, threading.current_thread() is threading.main_thread()))

        def on_leave(sender: object, *, stream: str, id: str, info: Any, **kwargs: Any) -> None:  # noqa: A002
            got.append(("leave", sender, stream, id, info, threading.current_thread() is threading.main_thread()))
            loop.call_soon_threadsafe(done.set)

        with receiving(presence_joined, on_join), receiving(presence_left, on_leave):
            await service.join("s", "phone", "1", {"name": "Ann"})
            await service.leave("s", "phone")
            await asyncio.wait_for(done.wait(), 10)
        assert got == [
            ("join", type(store), "s", "1", {"name": "Ann"}, False),
            ("leave", type(store), "s", "1", {"name": "Ann"}, False),
        ]

    async def test_receivers_run_neither_in_the_context_of_a_connection_nor_in_that_of_other_receivers(
        self, service: PresenceService
    ) -> None:
        tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
        got: list[str] = []

        def on_join(**kwargs: Any) -> None:
            got.append(tenant.get())
            tenant.set("set by a receiver")

        tenant.set("set by a connection")
        with receiving(presence_joined, on_join):
            for number in range(2):
                await service.join("s", f"phone{number}", str(number), None)
            await service.stop()
        assert got == ["nobody", "nobody"]

    async def test_pending_signals_are_sent_before_stop_returns(self, service: PresenceService, rounds: Rounds) -> None:
        got: list[str] = []

        def on_join(**kwargs: Any) -> None:
            got.append(kwargs["id"])

        with receiving(presence_joined, on_join):
            for number in range(3):
                await service.join("s", f"phone{number}", str(number), None)
            await service.stop()
        assert got == ["0", "1", "2"]

    async def test_the_error_of_a_receiver_is_logged_and_the_other_signals_are_sent(
        self, store: PresenceStore, service: PresenceService, caplog: pytest.LogCaptureFixture
    ) -> None:
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def fail(**kwargs: Any) -> None:
            if kwargs["id"] == "1":
                raise ValueError("broken receiver")
            loop.call_soon_threadsafe(done.set)

        with receiving(presence_joined, fail), caplog.at_level(logging.ERROR):
            await service.join("s", "phone", "1", None)
            await service.join("s", "desk", "2", None)
            await asyncio.wait_for(done.wait(), 10)
        assert "broken receiver" in caplog.text

    async def test_without_receivers_no_thread_is_used(self, store: PresenceStore, service: PresenceService) -> None:
        with mock.patch("reliable_cable.hub.presence.run_handler") as run_handler:
            await service.join("s", "phone", "1", None)
            await settle()
        run_handler.assert_not_called()

    async def test_pending_signals_of_slow_receivers_are_limited(
        self, store: PresenceStore, service: PresenceService, caplog: pytest.LogCaptureFixture
    ) -> None:
        release = threading.Event()
        got: list[str] = []

        def hang(**kwargs: Any) -> None:
            release.wait(10)
            got.append(kwargs["id"])

        with (
            receiving(presence_joined, hang),
            mock.patch("reliable_cable.hub.presence.MAX_PENDING_SIGNALS", 3),
        ):
            for number in range(10):
                await service.join("s", f"phone{number}", str(number), None)
                await settle()
            release.set()
            while service._sending is not None:
                await asyncio.wait([service._sending])
        assert got == ["0", "1", "2", "3"]
        assert caplog.text.count("too slow") == 6


@pytest.mark.parametrize("stream", [get_user_model()(pk=1), 1, None, "", "a\nb"])
def test_presence_for_refuses_what_is_not_the_name_of_a_stream(stream: Any) -> None:
    with pytest.raises(InvalidStreamName):
        presence_for(stream)


async def test_presence_for_returns_the_members_and_their_number() -> None:
    with override_settings(RELIABLE_CABLE={"ENGINE": "memory"}):
        presence = presence_for("s")
        assert await asyncio.to_thread(presence.info) == await presence.ainfo() == PresenceInfo(0, {})
        get_engine().presence.join("s", "phone", "1", "Ann")
        assert await asyncio.to_thread(presence.info) == await presence.ainfo() == PresenceInfo(1, {"1": "Ann"})
        count = await asyncio.to_thread(presence.info, records=False)
        assert count == await presence.ainfo(records=False) == PresenceInfo(1, None)
        assert await asyncio.to_thread(presence.total) == await presence.atotal() == 1
