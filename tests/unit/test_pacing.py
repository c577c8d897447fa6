"""A pacer lets a limited number of callers proceed in each iteration of the event loop, in order."""

from __future__ import annotations

import asyncio
from collections import Counter
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
    iteration = 0
    proceeded: list[tuple[int, int]] = []

    def count() -> None:
        nonlocal iteration
        iteration += 1
        asyncio.get_running_loop().call_soon(count)

    async def proceed(number: int) -> None:
        await pacer.wait()
        proceeded.append((iteration, number))

    count()
    await asyncio.gather(*(proceed(number) for number in range(20)))
    assert [number for _, number in proceeded] == list(range(20))
    assert max(Counter(iteration for iteration, _ in proceeded).values()) == 3


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

    async def run_two() -> list[str]:
        called: list[str] = []
        pacer.run(lambda: called.append("first"))
        pacer.run(lambda: called.append("second"))
        return called

    async def run_two_and_wait() -> list[str]:
        called = await run_two()
        async with asyncio.timeout(10):
            await pacer.wait()
        return called

    loop = asyncio.new_event_loop()
    task = loop.create_task(run_two())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert task.result() == ["first"]
    assert asyncio.run(run_two_and_wait()) == ["first", "second"]
