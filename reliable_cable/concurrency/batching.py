"""Collects requests from many tasks, and handles them in batches."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeAlias, TypeVar, cast

from .per_loop import PerLoop

A = TypeVar("A")
T = TypeVar("T")

#: The default maximum number of requests in a batch.
BATCH_SIZE: Final = 50
#: The default maximum number of batches that are handled at the same time in an event loop. Each batch usually needs a
#: thread and a database connection.
PARALLEL_BATCHES: Final = 2

#: The result and the error of a request. If the request has failed, the result is None; otherwise, the error is None.
Outcome: TypeAlias = tuple[T | None, Exception | None]


@dataclass(slots=True)
class _Pending(Generic[A, T]):
    """The pending requests of one event loop, and the tasks that handle them."""

    requests: deque[tuple[A, asyncio.Future[T]]] = field(default_factory=deque)
    workers: set[asyncio.Task[None]] = field(default_factory=set)


class Batches(Generic[A, T]):
    """Handles requests in batches. Requests that arrive while a batch is being handled are part of a later batch.

    Args:
        handle: a function that handles a batch, and returns the outcome of each request. If it raises an error, all
            requests of the batch fail.
        size: the maximum number of requests in a batch.
        parallel: the maximum number of batches that are handled at the same time in an event loop.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[A]], Awaitable[Sequence[Outcome[T]]]],
        *,
        size: int = BATCH_SIZE,
        parallel: int = PARALLEL_BATCHES,
    ) -> None:
        self._handle = handle
        self._size = size
        self._parallel = parallel
        self._loops: PerLoop[_Pending[A, T]] = PerLoop()

    async def __call__(self, request: A) -> T:
        """Add a request to the next batch, and return its result."""
        loop = asyncio.get_running_loop()
        pending = self._loops.get(_Pending)
        future: asyncio.Future[T] = loop.create_future()
        pending.requests.append((request, future))
        if len(pending.workers) < self._parallel:
            worker = loop.create_task(self._work(pending))
            pending.workers.add(worker)
            worker.add_done_callback(pending.workers.discard)  # in case the task is cancelled before it begins
        return await future

    async def _work(self, pending: _Pending[A, T]) -> None:
        try:
            while pending.requests:
                await self._handle_next(pending)
        finally:
            # The event loop calls the done callback some time after the end of the task. No worker would handle a
            # request that arrives in between. So the worker removes itself here.
            pending.workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _handle_next(self, pending: _Pending[A, T]) -> None:
        batch: list[tuple[A, asyncio.Future[T]]] = []
        while pending.requests and len(batch) < self._size:
            request, future = pending.requests.popleft()
            if not future.done():  # the future is done if its caller was cancelled
                batch.append((request, future))
        if not batch:
            return
        try:
            outcomes = await self._handle([request for request, _ in batch])
        except Exception as error:
            outcomes = [(None, error)] * len(batch)
        for (_, future), (result, cause) in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if cause is not None:
                future.set_exception(cause)
            else:
                future.set_result(cast(T, result))
