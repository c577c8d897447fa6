"""The service that keeps this process's members present and sends the signals, and presence for Django code."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import pytest
from django.dispatch import Signal
from django.test import override_settings

from reliable_cable.conf import get_settings
from reliable_cable.engine import get_engine
from reliable_cable.exceptions import StoreError
from reliable_cable.presence.base import Member, PresenceEvent, PresenceInfo, PresenceStore
from reliable_cable.presence.memory import MemoryPresenceStore
from reliable_cable.presence.service import LAST_ROUNDS, ROUNDS_PER_TTL, PresenceService, presence_for
from reliable_cable.signals import presence_joined, presence_left

from .conftest import Clock

TTL = 15.0


@pytest.fixture
def store(clock: Clock) -> PresenceStore:
    return MemoryPresenceStore(replace(get_settings(), presence_ttl=TTL), clock=clock)


async def settle() -> None:
    """Let the callbacks run that are due."""
    for _ in range(5):
        await asyncio.sleep(0)


class Rounds:
    """Stands for `asyncio.sleep`: the service's rounds happen when the test says so."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._next: asyncio.Future[None] | None = None

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._next = asyncio.get_running_loop().create_future()
        await self._next

    async def next(self) -> None:
        """Let the wait end, and the round that follows happen."""
        await settle()
        assert self._next is not None
        self._next.set_result(None)
        await settle()


@pytest.fixture
def rounds() -> Rounds:
    return Rounds()


@pytest.fixture
async def service(store: PresenceStore, rounds: Rounds) -> AsyncIterator[PresenceService]:
    service = PresenceService(store, sleep=rounds.sleep)
    yield service
    await service.stop()


class Fails:
    """Lets a store's methods fail while it is entered; `done`: they do what they are asked to, and fail after it."""

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


async def heard(store: PresenceStore) -> list[PresenceEvent]:
    """Return a list that gathers the events of the stream `s`."""
    events: list[PresenceEvent] = []
    await store.listen(lambda event: events.append(cast(PresenceEvent, event))).subscribe("s")
    return events


def forget(store: PresenceStore) -> None:
    """Let a memory store lose its data."""
    assert isinstance(store, MemoryPresenceStore)
    store._sessions.clear()
    store._streams.clear()
    store._tombstones.clear()


class TestService:
    async def test_what_is_held_is_refreshed_in_one_call_three_times_in_its_time(
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

    async def test_what_was_released_leaves_when_its_time_is_over(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.join("s", "phone", "1", None)
        service.release("s", "phone")
        for expected in (1, 1, 0):
            clock.advance(TTL / 3)
            await rounds.next()
            assert store.info("s").total == expected

    async def test_a_suspended_process_keeps_its_members(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        events = await heard(store)
        await service.join("s", "phone", "1", None)
        clock.advance(TTL * 100)
        await rounds.next()
        assert events == [PresenceEvent("s", "join", "1")]

    async def test_no_rounds_are_made_while_there_is_nothing_to_keep(
        self, service: PresenceService, rounds: Rounds
    ) -> None:
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

    async def test_the_dead_of_other_servers_are_noticed_wherever_a_stream_has_clients(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.open("s")
        store.join("s", "killed", "1")
        clock.advance(TTL)
        await rounds.next()
        assert store.info("s").total == 0
        await service.close("s")
        for _ in range(LAST_ROUNDS):
            await rounds.next()
        assert not service.running

    async def test_after_stop_nothing_runs(self, service: PresenceService) -> None:
        await service.join("s", "phone", "1", None)
        await service.stop()
        assert not service.running
        await service.join("s", "phone", "1", None)
        await service.open("s")
        assert not service.running
        await service.stop()


class TestAStoreThatFails:
    async def test_is_logged_once_and_asked_again_in_the_next_round(
        self,
        store: PresenceStore,
        service: PresenceService,
        rounds: Rounds,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO)
        await service.join("s", "phone", "1", None)
        with Fails(store, "refresh", "rejoin"):
            for _ in range(2):
                clock.advance(TTL / 3)
                await rounds.next()
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        for _ in range(4):
            clock.advance(TTL / 3)
            await rounds.next()
        assert store.info("s").total == 1
        assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]

    async def test_gets_the_join_that_it_missed(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        with Fails(store, "join", "rejoin"):
            await service.join("s", "phone", "1", "Ann")
            await rounds.next()
        assert store.info("s").total == 0
        with gathered(service) as signals:
            await rounds.next()
            assert store.info("s").records == {"1": "Ann"}
            assert await signals() == [("join", "1")]

    async def test_gets_the_info_that_it_missed(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        await service.join("s", "phone", "1", "Ann")
        with Fails(store, "join"):
            await service.join("s", "phone", "1", "Anna")
        with gathered(service) as signals:
            await rounds.next()
            assert store.info("s").records == {"1": "Anna"}
            assert await signals() == []

    async def test_gets_the_other_id_that_it_missed(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        await service.join("s", "phone", "1", None)
        with Fails(store, "join"):
            await service.join("s", "phone", "2", None)
        with gathered(service) as signals:
            await rounds.next()
            assert store.info("s").records == {"2": None}
            assert await signals() == [("leave", "1"), ("join", "2")]

    async def test_has_the_join_whose_answer_was_lost(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        events = await heard(store)
        with Fails(store, "join", done=True):
            await service.join("s", "phone", "1", None)
        await rounds.next()
        assert events == [PresenceEvent("s", "join", "1")]

    async def test_does_not_get_a_join_of_one_who_left_since(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds
    ) -> None:
        with Fails(store, "join"):
            await service.join("s", "phone", "1", None)
        await service.leave("s", "phone")
        await rounds.next()
        assert store.info("s").total == 0

    async def test_has_its_members_refreshed_by_every_server_before_any_is_swept(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.join("s", "phone", "1", None)
        store.join("s", "of another server", "2")
        with Fails(store, "refresh"):
            clock.advance(TTL * 2)
            await rounds.next()
        for _ in range(ROUNDS_PER_TTL):
            await rounds.next()
        assert store.info("s").total == 2
        await rounds.next()
        assert store.info("s").records == {"1": None}


class TestDataThatWereLost:
    async def test_are_made_anew_and_announced_but_not_signalled(
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

    async def test_a_member_that_was_swept_comes_back_and_is_signalled(
        self, store: PresenceStore, service: PresenceService, rounds: Rounds, clock: Clock
    ) -> None:
        await service.join("s", "phone", "1", None)
        clock.advance(TTL)
        store.expire()
        with gathered(service) as signals:
            await rounds.next()
            assert store.info("s").total == 1
            assert await signals() == [("join", "1")]

    @pytest.mark.parametrize("change", ["leave", "release", "join"])
    async def test_what_changes_while_it_is_joined_again_is_not_overtaken(
        self, store: PresenceStore, service: PresenceService, change: str
    ) -> None:
        await service.join("s", "phone", "1", None)
        forget(store)
        real = store.arejoin

        async def slow(members: Sequence[Member]) -> list[PresenceEvent]:
            # The change reaches the store first.
            with mock.patch.object(store, "arejoin", real):
                if change == "leave":
                    await service.leave("s", "phone")
                elif change == "release":
                    service.release("s", "phone")
                else:
                    await service.join("s", "phone", "2", None)
            return await real(members)

        with mock.patch.object(store, "arejoin", slow):
            await service.round()
        # Whoever was only released may come back within its time.
        assert store.info("s").records == {"leave": {}, "release": {"1": None}, "join": {"2": None}}[change]


@contextmanager
def receiving(signal: Signal, receiver: Callable[..., object]) -> Iterator[None]:
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


@contextmanager
def gathered(service: PresenceService) -> Iterator[Callable[[], Awaitable[list[tuple[str, str]]]]]:
    """Gather the signals; yields what waits for those that are due and returns their types and ids."""
    got: list[tuple[str, str]] = []

    def take(**kwargs: Any) -> None:
        got.append(("join" if kwargs["signal"] is presence_joined else "leave", kwargs["id"]))

    async def all_of_them() -> list[tuple[str, str]]:
        while service._sending is not None:
            await asyncio.wait([service._sending])
        return got

    with receiving(presence_joined, take), receiving(presence_left, take):
        yield all_of_them


class TestSignals:
    async def test_receivers_are_told_once_in_order_and_off_the_loop(
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

    async def test_a_receiver_that_raises_is_logged_and_stops_nothing(
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
        with mock.patch("reliable_cable.presence.service.run_handler") as run_handler:
            await service.join("s", "phone", "1", None)
            await settle()
        run_handler.assert_not_called()

    async def test_receivers_that_hang_cost_bounded_memory(
        self, store: PresenceStore, service: PresenceService, caplog: pytest.LogCaptureFixture
    ) -> None:
        release = threading.Event()
        got: list[str] = []

        def hang(**kwargs: Any) -> None:
            release.wait(10)
            got.append(kwargs["id"])

        with (
            receiving(presence_joined, hang),
            mock.patch("reliable_cable.presence.service.MAX_PENDING_SIGNALS", 3),
        ):
            for number in range(10):
                await service.join("s", f"phone{number}", str(number), None)
                await settle()
            release.set()
            while service._sending is not None:
                await asyncio.wait([service._sending])
        assert got == ["0", "1", "2", "3"]
        assert caplog.text.count("too slow") == 6


async def test_django_code_asks_for_a_streams_presence() -> None:
    with override_settings(RELIABLE_CABLE={"ENGINE": "memory"}):
        presence = presence_for("s")
        assert presence.info() == PresenceInfo(0, {})
        get_engine().presence.join("s", "phone", "1", "Ann")
        assert presence.info() == await presence.ainfo() == PresenceInfo(1, {"1": "Ann"})
        assert presence.info(records=False) == await presence.ainfo(records=False) == PresenceInfo(1, None)
        assert presence.total() == await presence.atotal() == 1
