"""Who broadcasts in the storm: a server's own view, another process, and a Celery worker."""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import httpx
from celery import Celery
from celery.exceptions import TimeoutError as TaskTimeout

from tests.support.server import CallFailed, OtherProcess, Server

from .plan import DURABLE, STREAMS, now
from .verdict import Fate, Position, Sent

#: Seconds that a call may take; an append tries for 8 s before it gives up.
CALL_TIMEOUT = 40.0
#: Seconds until a call whose fate is unknown is repeated.
REPEAT = 0.2
#: The part of the broadcasts to durable streams that is made in a transaction.
IN_TRANSACTION = 0.3


class Refused(Exception):
    """The call raised `BroadcastError`: nothing is stored."""


class Uncertain(Exception):
    """The call raised `BroadcastUncertain`, or its answer was lost."""


class Caller(ABC):
    """Makes calls (tests/integration/project/calls.py) in some process."""

    name: str

    async def broadcast(self, stream: str, data: Any, key: str | None) -> Position:
        """Broadcast, and return the position.

        Raises:
            Refused: nothing is stored.
            Uncertain: perhaps it is.
        """
        result = await self._ask(
            stream, {"call": "broadcast", "args": [stream, data], "kwargs": {"idempotency_key": key}}
        )
        return result["epoch"], result["offset"]

    async def broadcast_in_transaction(self, stream: str, data: Any, *, commit: bool) -> None:
        """Broadcast in a transaction, and commit it or roll it back.

        Raises:
            Refused, Uncertain: as for `broadcast`.
        """
        await self._ask(
            stream, {"call": "broadcast_in_transaction", "args": [stream, data], "kwargs": {"commit": commit}}
        )

    async def _ask(self, stream: str, request: dict[str, Any]) -> Any:
        answer = await self.call(request)
        error = answer.get("error")
        if error is None:
            return answer["result"]
        if error.startswith("BroadcastError:"):
            raise Refused(error)
        if error.startswith("BroadcastUncertain:"):
            raise Uncertain(error)
        raise CallFailed(f"{self.name} broadcast to {stream!r}: {error}")

    @abstractmethod
    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a call; return its `result` or its `error`."""

    async def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Release what it holds."""


class ViewCaller(Caller):
    """A view of a server, one of several by chance; the answer is lost when that server is killed."""

    name = "view"

    def __init__(self, servers: Sequence[Server], rng: random.Random) -> None:
        self._servers = servers
        self._rng = rng
        self._http = httpx.AsyncClient(timeout=CALL_TIMEOUT, trust_env=False, verify=False)  # noqa: S501 - no TLS here

    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a call in a server's process."""
        port = self._rng.choice(self._servers).port
        try:
            response = await self._http.post(f"http://127.0.0.1:{port}/call", json=request)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise Uncertain(repr(error)) from error
        answer: dict[str, Any] = response.json()
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


class ProcessCaller(Caller):
    """A process beside the servers, as a shell or a management command is."""

    name = "process"

    def __init__(self, process: OtherProcess) -> None:
        self._process = process

    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a call in that process."""
        try:
            return {"result": await self._process.call(request["call"], *request["args"], **request["kwargs"])}
        except CallFailed as error:
            return {"error": str(error)}


class TaskCaller(Caller):
    """A task in a Celery worker.

    Args:
        broker: its URL.
    """

    name = "task"

    def __init__(self, broker: str) -> None:
        self._app = Celery("storm", broker=broker, backend=broker, set_as_current=False)

    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a task and wait for its result."""
        return await asyncio.to_thread(self._call, request)

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        result = self._app.send_task("tests.integration.project.tasks.perform", [request])
        try:
            answer: dict[str, Any] = result.get(timeout=CALL_TIMEOUT)
        except TaskTimeout as error:
            raise Uncertain("the task's result did not come") from error
        result.forget()
        return answer

    async def close(self) -> None:
        """Close the connections to the broker."""
        await asyncio.to_thread(self._app.close)


class Broadcaster:
    """Broadcasts again and again, and notes what came of each.

    Args:
        caller: makes the calls.
        rng: chooses streams and pauses.
        pause: seconds between two broadcasts, on average.
    """

    def __init__(self, caller: Caller, rng: random.Random, pause: float) -> None:
        self.sent: list[Sent] = []
        #: How many calls ended each way; one that was repeated counts each time.
        self.refused = self.uncertain = 0
        self._caller = caller
        self._rng = rng
        self._pause = pause
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Broadcast until `stop`."""
        while not self._stopping.is_set():
            stream = self._rng.choice(STREAMS)
            if stream in DURABLE and self._rng.random() < IN_TRANSACTION:
                await self.broadcast_in_transaction(stream)
            else:
                await self.broadcast(stream)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._rng.uniform(0, 2 * self._pause))

    def stop(self) -> None:
        """Finish what is under way, and nothing more."""
        self._stopping.set()

    async def broadcast(self, stream: str) -> Sent:
        """Broadcast once; half of the time with a key, so that it can be repeated until its fate is known."""
        id_ = self._next_id()
        key = id_ if self._rng.random() < 0.5 else None
        begun = now()
        fate = Fate.STORED
        position = None
        while True:
            try:
                position = await self._caller.broadcast(stream, {"id": id_, "stream": stream}, key)
                break
            except Refused:
                self.refused += 1
                if fate is Fate.STORED:
                    fate = Fate.REFUSED
                    break
            except Uncertain:
                self.uncertain += 1
                fate = Fate.UNKNOWN
                if key is None:
                    break
            await asyncio.sleep(REPEAT)
        self.sent.append(Sent(stream, id_, begun, position, fate, now()))
        return self.sent[-1]

    async def broadcast_in_transaction(self, stream: str) -> None:
        """Broadcast in a transaction, which is rolled back now and then; for streams that share its fate."""
        id_ = self._next_id()
        begun = now()
        commit = self._rng.random() < 0.8
        fate = Fate.COMMITTED if commit else Fate.REFUSED
        try:
            await self._caller.broadcast_in_transaction(stream, {"id": id_, "stream": stream}, commit=commit)
        except Refused:
            self.refused += 1
            fate = Fate.REFUSED
        except Uncertain:
            self.uncertain += 1
            fate = Fate.UNKNOWN if commit else Fate.REFUSED
        self.sent.append(Sent(stream, id_, begun, None, fate, now()))

    def _next_id(self) -> str:
        return f"{self._caller.name}-{len(self.sent) + 1}"

    async def broadcast_surely(self, stream: str) -> Sent:
        """Broadcast until one is stored."""
        while True:
            one = await self.broadcast(stream)
            if one.position is not None:
                return one
            await asyncio.sleep(REPEAT)
