"""`PerLoop` keeps one object for each event loop."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from itertools import count

import pytest

from reliable_cable.concurrency.per_loop import PerLoop


async def test_a_loop_has_one_object() -> None:
    held: PerLoop[object] = PerLoop()
    assert held.peek() is None
    first = held.get(object)
    assert held.get(object) is first
    assert held.peek() is first
    assert held.pop() is first
    assert held.pop() is None
    assert held.get(object) is not first


async def test_an_outdated_object_is_replaced() -> None:
    numbers, held = count(), PerLoop[int]()
    assert held.get(lambda: next(numbers)) == 0
    assert held.get(lambda: next(numbers), lambda number: number > 0) == 1
    assert held.get(lambda: next(numbers), lambda number: number > 0) == 1
    assert len(held) == 1


def test_there_is_none_without_an_event_loop() -> None:
    held: PerLoop[object] = PerLoop()
    with pytest.raises(RuntimeError):
        held.get(object)
    with pytest.raises(RuntimeError):
        held.peek()
    with pytest.raises(RuntimeError):
        held.pop()
    assert len(held) == 0


def test_the_objects_of_closed_loops_are_dropped_even_if_they_refer_to_their_loops() -> None:
    async def get() -> asyncio.AbstractEventLoop:
        return held.get(asyncio.get_running_loop)

    held: PerLoop[asyncio.AbstractEventLoop] = PerLoop()
    loops = [asyncio.run(get()) for _ in range(3)]
    assert len(set(loops)) == 3
    assert len(held) == 1


def test_the_object_of_a_freed_loop_is_dropped() -> None:
    async def get() -> None:
        held.get(object)

    held: PerLoop[object] = PerLoop()
    asyncio.run(get())
    gc.collect()
    assert len(held) == 0


def test_threads_with_event_loops_have_their_own_objects() -> None:
    async def get() -> None:
        first = held.get(object)
        found.append(first)
        await asyncio.to_thread(barrier.wait)
        assert held.get(object) is first

    held: PerLoop[object] = PerLoop()
    found: list[object] = []
    barrier = threading.Barrier(4, timeout=30)
    threads = [threading.Thread(target=lambda: asyncio.run(get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 4


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_get_the_objects_of_its_parent() -> None:
    async def get() -> int:
        return held.get(os.getpid)

    held: PerLoop[int] = PerLoop()
    with asyncio.Runner() as runner:
        assert runner.run(get()) == os.getpid()
        child = os.fork()
        if child == 0:
            own = False
            try:
                own = asyncio.new_event_loop().run_until_complete(get()) == os.getpid()
            finally:
                os._exit(0 if own else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(held) == 1
