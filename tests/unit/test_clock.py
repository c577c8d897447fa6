"""`StoreClock` estimates the time of a store's clock from measurements, which it repeats when they are old."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import cast

import pytest

from reliable_cable import StoreError
from reliable_cable.stores import clock
from reliable_cable.stores.base import Store
from reliable_cable.stores.clock import IDLE_TIME, MARGIN, MAX_AGE, MAX_DRIFT, StoreClock
from tests.stores.conftest import until, wait_until

#: How many seconds the clocks of the store and of this host are ahead of the true time.
STORE, HOST = 1000.0, 60.0


class World:
    """A host and a server whose clocks differ, and the network between them. Time passes only when a test says so."""

    def __init__(self) -> None:
        self.true_time = 1_000_000.0
        #: How many seconds the clock of the store is ahead of the true time.
        self.ahead = STORE
        #: How many seconds a request takes to arrive, and how many its response takes.
        self.request_time = self.response_time = 0.0
        self.down = False
        self.requests = 0
        #: Responses wait until this is set.
        self.responds = threading.Event()
        self.responds.set()
        self.store_clock = StoreClock(cast(Store, self), monotonic=self.monotonic, host=self.clock)

    def clock(self) -> float:
        return self.true_time + HOST

    def monotonic(self) -> float:
        return self.true_time - 999_000.0

    @property
    def store_time(self) -> float:
        return self.true_time + self.ahead

    # -- the store -----------------------------------------------------------------------------------------------------

    def clocks(self) -> dict[str, Callable[[], float]]:
        return {"server": self.time}

    def time(self) -> float:
        self.requests += 1
        assert self.responds.wait(10)
        if self.down:
            raise StoreError("down")
        self.true_time += self.request_time
        store_time = self.store_time
        self.true_time += self.response_time
        return store_time

    async def atime(self) -> float:
        return self.time()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def _no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no thread, so that the clock is measured only when a test measures it."""
    monkeypatch.setattr(StoreClock, "_measure_soon", lambda self: None)


@pytest.mark.usefixtures("_no_thread")
class TestTime:
    @pytest.mark.parametrize(("request_time", "response_time"), [(0.0, 0.0), (0.1, 0.1), (0.2, 0.0), (0.0, 0.2)])
    def test_it_is_the_time_of_the_store_or_earlier_by_at_most_a_round_trip(
        self, world: World, request_time: float, response_time: float
    ) -> None:
        world.request_time, world.response_time = request_time, response_time
        world.store_clock.measure()
        world.true_time += MAX_AGE - 1
        assert world.store_time - 0.2 <= world.store_clock.now() + 1e-6
        assert world.store_clock.now() <= world.store_time + 1e-6

    def test_a_moment_in_the_past_is_converted_with_the_latest_measurement(self, world: World) -> None:
        moment, store_time = world.store_clock.moment(), world.store_time
        world.true_time += 5
        world.store_clock.measure()
        assert world.store_clock.at(moment) == pytest.approx(store_time)

    def test_a_time_of_this_host_is_converted(self, world: World) -> None:
        world.store_clock.measure()
        assert world.store_clock.of_host(world.clock() - 100) == pytest.approx(world.store_time - 100)

    def test_before_the_first_measurement_it_is_the_time_of_this_host_minus_a_margin(self, world: World) -> None:
        assert world.store_clock.now() == pytest.approx(world.clock() - MARGIN)

    def test_an_old_measurement_is_used_with_a_margin(self, world: World) -> None:
        world.store_clock.measure()
        world.true_time += MAX_AGE + 1
        assert world.store_clock.now() == pytest.approx(world.store_time - MARGIN)

    def test_it_follows_a_store_whose_clock_is_set(self, world: World) -> None:
        for ahead in (STORE - 50, STORE + 50):
            world.store_clock.measure()
            world.ahead = ahead
            world.store_clock.measure()
            assert world.store_clock.now() == pytest.approx(world.store_time)

    @pytest.mark.parametrize("round_trip", [0.1, 4.0])
    def test_a_slower_measurement_does_not_make_the_time_less_exact(self, world: World, round_trip: float) -> None:
        world.store_clock.measure()
        world.response_time = round_trip
        world.store_clock.measure()
        assert world.store_clock.now() == pytest.approx(world.store_time, abs=MAX_DRIFT * round_trip)
        assert world.store_clock.now() <= world.store_time

    def test_a_faster_measurement_makes_the_time_more_exact(self, world: World) -> None:
        world.response_time = 4.0
        world.store_clock.measure()
        world.response_time = 0.0
        world.store_clock.measure()
        assert world.store_clock.now() == pytest.approx(world.store_time)

    def test_slow_measurements_follow_a_clock_that_is_slower_than_this_hosts(self, world: World) -> None:
        world.store_clock.measure()
        world.response_time = 0.1
        for _ in range(1000):
            world.true_time += MAX_AGE / 2
            world.ahead -= MAX_DRIFT * MAX_AGE / 2
            world.store_clock.measure()
            assert world.store_time - 0.11 <= world.store_clock.now() <= world.store_time + 1e-6

    def test_a_slow_response_replaces_a_measurement_that_it_contradicts(self, world: World) -> None:
        world.store_clock.measure()
        world.ahead -= 50
        world.request_time = world.response_time = 2.0
        world.store_clock.measure()
        assert world.store_time - 4 <= world.store_clock.now() + 1e-6
        assert world.store_clock.now() <= world.store_time

    def test_it_is_the_time_of_this_host_if_the_store_uses_that(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(world, "clocks", dict)
        assert world.store_clock.now() == world.clock()
        assert world.store_clock.of_host(5) == 5
        moment, host_time = world.store_clock.moment(), world.clock()
        world.true_time += 5
        assert world.store_clock.at(moment) == pytest.approx(host_time)
        assert world.requests == 0

    def test_a_failed_measurement_keeps_the_last_one(self, world: World) -> None:
        world.store_clock.measure()
        world.down = True
        with pytest.raises(StoreError):
            world.store_clock.measure()
        assert world.store_clock.now() == pytest.approx(world.store_time)


class TestThread:
    """The thread that measures the clock if no event loop does."""

    def test_it_measures_and_callers_do_not_wait(self, world: World) -> None:
        world.responds.clear()
        for _ in range(3):
            assert world.store_clock.now() == pytest.approx(world.clock() - MARGIN)
        wait_until(lambda: world.requests)
        world.responds.set()
        wait_until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        assert world.requests == 1

    def test_it_measures_again_and_retries_while_the_store_fails(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clock, "INTERVAL", 0.001)
        monkeypatch.setattr(clock, "BACKGROUND_RETRY_DELAY", 0.001)
        world.down = True
        world.store_clock.now()
        wait_until(lambda: world.requests > 2)
        world.down = False
        wait_until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        world.ahead += 50
        wait_until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        world.true_time += IDLE_TIME + 1

    def test_it_ends_when_the_clock_is_unused_and_a_later_use_starts_a_new_one(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clock, "INTERVAL", 0.001)
        world.store_clock.now()
        for _ in range(2):
            thread = world.store_clock._thread
            assert thread is not None
            world.true_time += IDLE_TIME + 1
            thread.join(10)
            assert not thread.is_alive()
            world.store_clock.now()
        world.true_time += IDLE_TIME + 1

    def test_it_is_not_started_if_threads_are_not_allowed(self, world: World) -> None:
        store_clock = StoreClock(cast(Store, world), threads=False, monotonic=world.monotonic, host=world.clock)
        assert store_clock.now() == pytest.approx(world.clock() - MARGIN)
        assert store_clock._thread is None

    def test_it_ends_when_the_clock_is_freed(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clock, "INTERVAL", 0.001)
        world.store_clock.now()
        thread = world.store_clock._thread
        assert thread is not None
        del world.store_clock

        def ended() -> bool:
            gc.collect()
            return not thread.is_alive()

        wait_until(ended)


class TestEventLoop:
    async def test_keep_measures_repeatedly_until_it_is_cancelled(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clock, "INTERVAL", 0.001)
        monkeypatch.setattr(clock, "BACKGROUND_RETRY_DELAY", 0.001)
        world.down = True
        keeping = asyncio.create_task(world.store_clock.keep())
        await until(lambda: world.requests > 2)
        world.store_clock.now()
        assert world.store_clock._thread is None, "a thread measures as well"
        world.down = False
        await until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        world.ahead += 50
        await until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        keeping.cancel()
        await asyncio.wait([keeping])

    @pytest.mark.usefixtures("_no_thread")
    async def test_ready_measures_only_if_there_is_no_recent_measurement(self, world: World) -> None:
        await world.store_clock.ready()
        assert world.store_clock.now() == pytest.approx(world.store_time)
        await world.store_clock.ready()
        assert world.requests == 1
        world.true_time += MAX_AGE + 1
        await world.store_clock.ready()
        assert world.requests == 2

    @pytest.mark.usefixtures("_no_thread")
    async def test_ready_does_not_wait_long_for_a_failing_store(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.down = True
        await world.store_clock.ready()

        async def hang() -> float:
            await asyncio.Event().wait()
            return 0.0

        monkeypatch.setattr(clock, "READY_TIMEOUT", 0.01)
        monkeypatch.setattr(world, "atime", hang)
        await world.store_clock.ready()
        assert world.store_clock.now() == pytest.approx(world.clock() - MARGIN)
