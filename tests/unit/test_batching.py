"""`Batches` gives each request its own outcome, and leaves no request without a task that handles it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from reliable_cable.concurrency.batching import Batches, Outcome

from .wire import until


class Squares:
    """Squares batches of numbers as soon as `open` is set. Negative numbers get errors, and a batch with a 0 fails."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, numbers: Sequence[int]) -> list[Outcome[int]]:
        self.batches.append(list(numbers))
        await self.open.wait()
        if 0 in numbers:
            raise LookupError("the whole batch fails")
        return [(None, ValueError(number)) if number < 0 else (number**2, None) for number in numbers]


@pytest.mark.parametrize("parallel", [1, 2])
async def test_a_request_that_is_made_when_the_last_batch_has_just_ended_is_handled(parallel: int) -> None:
    batches = Batches(Squares(), size=1, parallel=parallel)

    async def call_again_and_again() -> list[int]:
        return [await batches(number) for number in range(1, 50)]

    async with asyncio.timeout(10):
        results = await asyncio.gather(*(call_again_and_again() for _ in range(parallel)))
    assert results == [[number**2 for number in range(1, 50)]] * parallel


async def test_requests_that_arrive_during_a_batch_are_handled_together() -> None:
    squares = Squares()
    squares.open.clear()
    batches = Batches(squares, size=3, parallel=1)
    tasks = [asyncio.create_task(batches(1))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(batches(number)) for number in (2, 3, 4, 5)]
    await asyncio.sleep(0)
    squares.open.set()
    assert await asyncio.gather(*tasks) == [1, 4, 9, 16, 25]
    assert squares.batches == [[1], [2, 3, 4], [5]]


async def test_each_caller_gets_its_own_error_or_that_of_the_batch() -> None:
    batches = Batches(Squares(), size=2, parallel=1)
    outcomes = await asyncio.gather(*map(batches, (1, -2, 0, 3, 4)), return_exceptions=True)
    assert [each if isinstance(each, int) else type(each) for each in outcomes] == [
        1,
        ValueError,
        LookupError,
        LookupError,
        16,
    ]


async def test_requests_of_cancelled_callers_are_left_out() -> None:
    squares = Squares()
    squares.open.clear()
    batches = Batches(squares, size=3, parallel=1)
    first = asyncio.create_task(batches(1))
    await until(lambda: squares.batches)
    others = [asyncio.create_task(batches(number)) for number in (2, 3)]
    await asyncio.sleep(0)
    others[0].cancel()
    first.cancel()
    await asyncio.sleep(0)
    squares.open.set()
    assert await others[1] == 9
    assert squares.batches == [[1], [3]]
