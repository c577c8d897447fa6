"""`FairLock` is granted to waiting threads in the order of their arrival."""

from __future__ import annotations

import threading
import time

import pytest

from reliable_cable.stores.database.fair_lock import FairLock


def queue_up(lock: FairLock, *threads: threading.Thread) -> None:
    """Start threads one after another. Each waits for the lock, which must be held."""
    for number, thread in enumerate(threads, 2):
        thread.start()
        while len(lock._queue) < number:
            time.sleep(0.001)


@pytest.fixture
def lock() -> FairLock:
    return FairLock()


def test_waiting_threads_get_the_lock_in_the_order_of_their_arrival(lock: FairLock) -> None:
    order: list[int] = []

    def take(number: int) -> None:
        with lock.hold(30) as held:
            assert held
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(10)]
    with lock.hold(0):
        queue_up(lock, *threads)
    for thread in threads:
        thread.join()
    assert order == list(range(10))


def test_a_thread_that_arrives_later_does_not_overtake_waiting_threads(lock: FairLock) -> None:
    holds, may_end = threading.Event(), threading.Event()

    def take() -> None:
        with lock.hold(30):
            holds.set()
            may_end.wait()

    waiter = threading.Thread(target=take)
    with lock.hold(0):
        queue_up(lock, waiter)
    # The lock belongs to the waiting thread now, even if that thread has not run yet.
    with lock.hold(0) as later:
        assert not later
    assert holds.wait(30)
    may_end.set()
    waiter.join()
    with lock.hold(0) as free:
        assert free


def test_a_waiter_gives_up_after_its_timeout_and_leaves_the_queue(lock: FairLock) -> None:
    with lock.hold(0) as first, lock.hold(0.01) as second:
        assert (first, second) == (True, False)
    with lock.hold(0) as third:
        assert third


def test_the_lock_is_never_held_twice_and_never_lost_with_short_timeouts(lock: FairLock) -> None:
    holders = 0
    most_holders = 0

    def take() -> None:
        nonlocal holders, most_holders
        for _ in range(200):
            with lock.hold(0.0002) as held:
                if held:
                    holders += 1
                    most_holders = max(most_holders, holders)
                    time.sleep(0.0001)
                    holders -= 1

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most_holders == 1
    with lock.hold(0) as free:
        assert free
