"""Tests of pacing: a limited number of callers proceeds in each iteration of the event loop, in order."""

from __future__ import annotations

import asyncio
from functools import partial

from reliable_cable.concurrency.pacing import Pacer


async def test_callers_below_the_limit_proceed_at_once() -> None:
    pacer = Pacer(3)
    for _ in range(3):
        coroutine = pacer.wait()
        try:
            coroutine.send(None)
        except StopIteration:
            continue
        raise AssertionError("a caller below the limit had to wait")


async def test_many_callers_proceed_in_order_within_the_limit() -> None:
    pacer = Pacer(3)
    now = 0
    proceeded: list[tuple[int, int]] = []

    def count() -> None:
        nonlocal now
        now += 1
        asyncio.get_running_loop().call_soon(count)

    async def go(number: int) -> None:
        await pacer.wait()
        proceeded.append((now, number))

    count()
    await asyncio.gather(*(go(number) for number in range(20)))
    assert [number for _, number in proceeded] == list(range(20))
    counts = [[iteration for iteration, _ in proceeded].count(iteration) for iteration in dict(proceeded)]
    assert max(counts) == 3


async def test_run_queues_calls_beyond_the_limit() -> None:
    pacer = Pacer(3)
    proceeded: list[int] = []
    for number in range(8):
        pacer.run(partial(proceeded.append, number))
    counts = [len(proceeded)]
    while len(proceeded) < 8:
        await asyncio.sleep(0)
        counts.append(len(proceeded))
    assert proceeded == list(range(8))
    assert sorted(set(counts)) == [3, 6, 8]


async def test_a_call_that_fails_does_not_block_the_queue() -> None:
    pacer = Pacer(1)
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context["exception"]))
    error = ValueError()

    def fail() -> None:
        raise error

    pacer.run(lambda: None)
    for _ in range(2):
        pacer.run(fail)
    async with asyncio.timeout(10):
        await pacer.wait()
    assert failed == [error, error]


async def test_a_cancelled_caller_does_not_block_the_queue() -> None:
    pacer = Pacer(1)
    tasks = [asyncio.create_task(pacer.wait()) for _ in range(4)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    async with asyncio.timeout(10):
        await asyncio.wait(tasks)
    assert [task.cancelled() for task in tasks] == [False, False, True, False]


async def test_an_idle_pacer_schedules_nothing() -> None:
    pacer = Pacer(1)
    await asyncio.gather(*(pacer.wait() for _ in range(3)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (pacer._used, len(pacer._waiting)) == (0, 0)


def test_a_closed_event_loop_leaves_no_callers_to_the_next_one() -> None:
    pacer = Pacer(1)

    async def begin_two() -> list[str]:
        begun: list[str] = []
        pacer.run(lambda: begun.append("one"))
        pacer.run(lambda: begun.append("two"))
        return begun

    async def begin_two_and_wait() -> list[str]:
        begun = await begin_two()
        async with asyncio.timeout(10):
            await pacer.wait()
        return begun

    loop = asyncio.new_event_loop()
    first = loop.create_task(begin_two())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert first.result() == ["one"]
    assert asyncio.run(begin_two_and_wait()) == ["one", "two"]
