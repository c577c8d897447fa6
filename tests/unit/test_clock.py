"""The time by a store's clock (clock.py): offsets, measurements and their age."""

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
from reliable_cable.stores.clock import IDLE_TIME, MARGIN, MAX_AGE, MAX_GOOD_ROUND_TRIP, StoreClock
from tests.stores.conftest import until, wait_until

#: How far, in seconds, the clocks of the store and of this host are ahead of the true time.
STORE, HOST = 1000.0, 60.0


class World:
    """A host and a server whose clocks differ, and the network between them. Time passes when a test says so."""

    def __init__(self) -> None:
        self.true_time = 1_000_000.0
        self.step = STORE
        #: How many seconds a question takes to arrive, and its answer.
        self.there = self.back = 0.0
        self.down = False
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()
        self.store_clock = StoreClock(cast(Store, self), monotonic=self.monotonic, host=self.clock)

    def clock(self) -> float:
        return self.true_time + HOST

    def monotonic(self) -> float:
        return self.true_time - 999_000.0

    @property
    def store_time(self) -> float:
        return self.true_time + self.step

    # -- the store ----------------------------------------------------------------------------------------------------

    def clocks(self) -> dict[str, Callable[[], float]]:
        return {"server": self.time}

    def time(self) -> float:
        self.asked += 1
        assert self.answers.wait(10)
        if self.down:
            raise StoreError("down")
        self.true_time += self.there
        told = self.store_time
        self.true_time += self.back
        return told

    async def atime(self) -> float:
        return self.time()


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def _no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no thread, so that only the test measures."""
    monkeypatch.setattr(StoreClock, "_measure_soon", lambda self: None)


@pytest.mark.usefixtures("_no_thread")
class TestTheTime:
    @pytest.mark.parametrize(("there", "back"), [(0.0, 0.0), (0.1, 0.1), (0.2, 0.0), (0.0, 0.2)])
    def test_is_the_stores_or_earlier_by_a_round_trip_at_most(self, world: World, there: float, back: float) -> None:
        world.there, world.back = there, back
        world.store_clock.measure()
        world.true_time += MAX_AGE - 1
        assert world.store_time - 0.2 <= world.store_clock.now() + 1e-6
        assert world.store_clock.now() <= world.store_time + 1e-6

    def test_of_a_moment_in_the_past_is_told_as_it_is_known_now(self, world: World) -> None:
        moment, then = world.store_clock.moment(), world.store_time
        world.true_time += 5
        world.store_clock.measure()
        assert world.store_clock.at(moment) == pytest.approx(then)

    def test_of_this_host_is_translated(self, world: World) -> None:
        world.store_clock.measure()
        assert world.store_clock.of_host(world.clock() - 100) == pytest.approx(world.store_time - 100)

    def test_that_was_never_measured_is_this_hosts_and_earlier(self, world: World) -> None:
        assert world.store_clock.now() == pytest.approx(world.clock() - MARGIN)

    def test_that_was_measured_long_ago_is_earlier(self, world: World) -> None:
        world.store_clock.measure()
        world.true_time += MAX_AGE + 1
        assert world.store_clock.now() == pytest.approx(world.store_time - MARGIN)

    def test_follows_a_store_whose_clock_steps(self, world: World) -> None:
        for step in (STORE - 50, STORE + 50):
            world.store_clock.measure()
            world.step = step
            world.store_clock.measure()
            assert world.store_clock.now() == pytest.approx(world.store_time)

    def test_is_not_spoilt_by_a_slow_answer(self, world: World) -> None:
        world.store_clock.measure()
        world.there, world.back = 0.0, 4.0
        assert world.back > MAX_GOOD_ROUND_TRIP
        world.store_clock.measure()
        assert world.store_clock.now() == pytest.approx(world.store_time)

    def test_but_corrected_by_a_slow_answer_that_contradicts_it(self, world: World) -> None:
        world.store_clock.measure()
        world.step -= 50
        world.there = world.back = 2.0
        world.store_clock.measure()
        assert world.store_time - 4 <= world.store_clock.now() + 1e-6
        assert world.store_clock.now() <= world.store_time

    def test_where_the_store_uses_this_hosts_clock_is_the_hosts(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(world, "clocks", dict)
        assert world.store_clock.now() == world.clock()
        assert world.store_clock.of_host(5) == 5
        moment, then = world.store_clock.moment(), world.clock()
        world.true_time += 5
        assert world.store_clock.at(moment) == pytest.approx(then)
        assert world.asked == 0

    def test_is_kept_while_the_store_is_away(self, world: World) -> None:
        world.store_clock.measure()
        world.down = True
        with pytest.raises(StoreError):
            world.store_clock.measure()
        assert world.store_clock.now() == pytest.approx(world.store_time)


class TestAThread:
    """The thread that measures if no event loop does."""

    def test_measures_and_keeps_nobody_waiting(self, world: World) -> None:
        world.answers.clear()
        for _ in range(3):
            assert world.store_clock.now() == pytest.approx(world.clock() - MARGIN)
        wait_until(lambda: world.asked)
        world.answers.set()
        wait_until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        assert world.asked == 1

    def test_measures_again_and_also_after_the_store_was_away(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clock, "INTERVAL", 0.001)
        monkeypatch.setattr(clock, "RETRY_DELAY", 0.001)
        world.down = True
        world.store_clock.now()
        wait_until(lambda: world.asked > 2)
        world.down = False
        wait_until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        world.step += 50
        wait_until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        world.true_time += IDLE_TIME + 1

    def test_ends_when_the_clock_is_not_used_any_more_and_begins_again(
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

    def test_is_not_made_where_everything_is_to_stay_in_the_callers_thread(self, world: World) -> None:
        bound = StoreClock(cast(Store, world), threads=False, monotonic=world.monotonic, host=world.clock)
        assert bound.now() == pytest.approx(world.clock() - MARGIN)
        assert bound._thread is None

    def test_ends_with_the_clock(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(clock, "INTERVAL", 0.001)
        world.store_clock.now()
        thread = world.store_clock._thread
        assert thread is not None
        del world.store_clock

        def ended() -> bool:
            gc.collect()
            return not thread.is_alive()

        wait_until(ended)


class TestAnEventLoop:
    async def test_keeps_the_clock_measured_until_it_is_cancelled(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(clock, "INTERVAL", 0.001)
        monkeypatch.setattr(clock, "RETRY_DELAY", 0.001)
        world.down = True
        keeping = asyncio.create_task(world.store_clock.keep())
        await until(lambda: world.asked > 2)
        world.store_clock.now()
        assert world.store_clock._thread is None, "one of them is enough"
        world.down = False
        await until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        world.step += 50
        await until(lambda: world.store_clock.now() == pytest.approx(world.store_time))
        keeping.cancel()
        await asyncio.wait([keeping])

    @pytest.mark.usefixtures("_no_thread")
    async def test_waits_for_a_first_measurement_only(self, world: World) -> None:
        await world.store_clock.ready()
        assert world.store_clock.now() == pytest.approx(world.store_time)
        await world.store_clock.ready()
        assert world.asked == 1
        world.true_time += MAX_AGE + 1
        await world.store_clock.ready()
        assert world.asked == 2

    @pytest.mark.usefixtures("_no_thread")
    async def test_waits_not_long_for_a_store_that_is_away(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.down = True
        await world.store_clock.ready()

        async def hang() -> float:
            await asyncio.Event().wait()
            return 0.0

        monkeypatch.setattr(clock, "READY_TIMEOUT", 0.01)
        monkeypatch.setattr(world, "atime", hang)
        await world.store_clock.ready()
        assert world.store_clock.now() == pytest.approx(world.clock() - MARGIN)
