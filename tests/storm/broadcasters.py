"""The broadcasters of a storm: views of the servers, another process, and a Celery worker."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from celery import Celery
from celery.exceptions import TimeoutError as TaskTimeout

from tests.support.server import CallFailed, OtherProcess, Server

from .plan import DURABLE, STREAMS, Plan, now
from .truth import Position, Result, Sent

#: How long, in seconds, a call may take. An append is retried for 8 s.
CALL_TIMEOUT = 40.0
#: How long, in seconds, to wait before a call whose result is unknown is repeated.
REPEAT = 0.2
#: How long, in seconds, to repeat a call whose result is unknown, or a broadcast that must be stored.
REPEAT_FOR = 60.0
#: The share of broadcasts to durable streams that are made in a transaction.
IN_TRANSACTION = 0.3
#: Errors that `atomic()` raises when the database of the transaction fails. These are not errors of the package.
DATABASE_ERRORS = ("OperationalError:", "InterfaceError:", "InternalError:", "DatabaseError:")


class Refused(Exception):
    """The call raised `BroadcastError`, so nothing is stored."""


class Uncertain(Exception):
    """The call raised `BroadcastUncertain`, or its answer was lost, so its result is unknown."""


class Unexpected(Exception):
    """The call raised an error that is not documented. Its result is unknown."""


class Caller(ABC):
    """Makes calls (tests/integration/project/calls.py) in another process."""

    name: str

    async def broadcast(self, stream: str, data: Any, key: str | None) -> Position:
        """Broadcast, and return the position.

        Raises:
            Refused: the call raised `BroadcastError`.
            Uncertain: the call raised `BroadcastUncertain`, or its answer was lost.
            Unexpected: the call raised an error that is not documented.
        """
        result = await self._ask("broadcast", stream, data, idempotency_key=key)
        return result["epoch"], result["offset"]

    async def broadcast_batch(self, stream: str, payloads: Sequence[Any]) -> list[Position]:
        """Broadcast a batch, and return the positions.

        Raises:
            Refused, Uncertain, Unexpected: as for `broadcast`, but for the whole batch.
        """
        result = await self._ask("broadcast_batch", stream, payloads)
        return [(position["epoch"], position["offset"]) for position in result]

    async def commit_broadcasts(
        self, stream: str, payloads: Sequence[Any], *, commit: bool, hold: float
    ) -> dict[str, Any]:
        """Broadcast in a transaction, commit it or roll it back, and return the result of `calls.commit_broadcasts`.

        Raises:
            Uncertain, Unexpected: as for `broadcast`.
        """
        result: dict[str, Any] = await self._ask("commit_broadcasts", stream, payloads, commit=commit, hold=hold)
        return result

    async def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        answer = await self.call({"call": name, "args": args, "kwargs": kwargs})
        error = answer.get("error")
        if error is None:
            return answer["result"]
        if error.startswith("BroadcastError:"):
            raise Refused(error)
        if error.startswith("BroadcastUncertain:"):
            raise Uncertain(error)
        raise Unexpected(f"{self.name}: {name} to {args[0]!r} raised {error}")

    @abstractmethod
    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a call, and return a mapping with its `result` or its `error`."""

    async def close(self) -> None:
        """Close connections."""


class ViewCaller(Caller):
    """Makes calls in a view of a random server. The answer is lost if the server is killed."""

    def __init__(self, servers: Sequence[Server], rng: random.Random, name: str = "view") -> None:
        self.name = name
        self._servers = servers
        self._rng = rng
        self._http = httpx.AsyncClient(timeout=CALL_TIMEOUT, trust_env=False, verify=False)  # noqa: S501 - no TLS here

    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a call in the process of a random server."""
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
    """Makes calls in a process that serves no connections, such as a shell or a management command."""

    name = "process"

    def __init__(self, process: OtherProcess) -> None:
        self._process = process

    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make a call in the process."""
        try:
            return {"result": await self._process.call(request["call"], *request["args"], **request["kwargs"])}
        except CallFailed as error:
            return {"error": str(error)}


class TaskCaller(Caller):
    """Makes calls in a task of a Celery worker.

    Args:
        broker: the URL of the Celery broker.
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
            raise Uncertain(f"the result of the task did not arrive within {CALL_TIMEOUT:g} s") from error
        result.forget()
        return answer

    async def close(self) -> None:
        """Close the connections to the broker."""
        await asyncio.to_thread(self._app.close)


class Broadcaster:
    """Broadcasts repeatedly, and records the result of each broadcast.

    Args:
        caller: the process that makes the calls.
        rng: chooses streams and pauses.
        plan: the plan of the storm.
    """

    def __init__(self, caller: Caller, rng: random.Random, plan: Plan) -> None:
        self.sent: list[Sent] = []
        #: How many calls were refused or had an unknown result. Repeated calls count each time.
        self.refused = self.uncertain = 0
        #: Errors that are not documented.
        self.complaints: list[str] = []
        self._caller = caller
        self._rng = rng
        self._plan = plan
        self._numbers = itertools.count(1)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Broadcast until `stop` is called."""
        while not self._stopping.is_set():
            stream = self._rng.choice(STREAMS)
            if stream in DURABLE and self._rng.random() < IN_TRANSACTION:
                await self.broadcast_in_transaction(stream, commit=self._rng.random() < 0.8)
            else:
                await self.broadcast(stream)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._rng.uniform(0, 2 * self._plan.pause))

    def stop(self) -> None:
        """Stop after the current broadcast."""
        self._stopping.set()

    async def broadcast(self, stream: str) -> Sent:
        """Broadcast once. Half of the calls have an idempotency key, and are repeated until their result is known."""
        id_ = self._next_id()
        key = id_ if self._rng.random() < 0.5 else None
        begun = now()
        result = Result.STORED
        position = None
        while True:
            try:
                position = await self._caller.broadcast(stream, {"id": id_, "stream": stream}, key)
                break
            except (Refused, Uncertain, Unexpected) as error:
                self._count(error)
                if isinstance(error, Refused) and result is Result.STORED:
                    result = Result.REFUSED
                    break
                result = Result.UNKNOWN
                if key is None:
                    break
                if now() > begun + REPEAT_FOR:
                    self.complaints.append(
                        f"the result of the broadcast {id_} in {stream!r} is unknown after {REPEAT_FOR:g} s: {error}"
                    )
                    break
            await asyncio.sleep(REPEAT)
        self.sent.append(Sent(stream, id_, begun, position, result, now()))
        return self.sent[-1]

    async def broadcast_in_transaction(
        self, stream: str, count: int = 1, *, commit: bool = True, hold: float = 0.0
    ) -> None:
        """Broadcast messages in one transaction.

        Args:
            stream: the name of the stream.
            count: the number of messages.
            commit: whether the transaction is committed.
            hold: how many seconds to wait between the broadcasts and the commit.
        """
        ids = [self._next_id() for _ in range(count)]
        begun = now()
        try:
            payloads = [{"id": id_, "stream": stream} for id_ in ids]
            answer = await self._caller.commit_broadcasts(stream, payloads, commit=commit, hold=hold)
            result = self._result_of(stream, answer, commit=commit)
        except (Refused, Uncertain, Unexpected) as error:
            self._count(error)
            result = Result.UNKNOWN if commit else Result.REFUSED
        self.sent += [Sent(stream, id_, begun, None, result, now()) for id_ in ids]

    def _result_of(self, stream: str, answer: Mapping[str, Any], *, commit: bool) -> Result:
        """Return the result of broadcasts in a transaction, and record errors that are not documented."""
        error = answer["error"] or ""
        if answer["committed"]:
            if error:
                self.complaints.append(f"{self._caller.name}: atomic() raised after its commit to {stream!r}: {error}")
            if not answer["hooks"]:
                self.complaints.append(f"{self._caller.name}: hooks after the broadcasts to {stream!r} did not run")
            # If the stream is not durable, a failure after the commit is only logged and signalled.
            return Result.UNKNOWN if self._plan.in_redis(stream) else Result.COMMITTED
        if not commit or error.startswith("BroadcastError:"):
            self.refused += bool(error)
            return Result.REFUSED
        if not (self._plan.database_fails and error.startswith(DATABASE_ERRORS)):
            self.complaints.append(f"{self._caller.name}: atomic() with broadcasts to {stream!r} raised {error}")
        self.uncertain += 1
        return Result.UNKNOWN

    async def broadcast_batch(self, stream: str, count: int) -> None:
        """Broadcast messages in one batch."""
        ids = [self._next_id() for _ in range(count)]
        begun = now()
        positions: Sequence[Position | None] = [None] * count
        try:
            payloads = [{"id": id_, "stream": stream} for id_ in ids]
            positions = await self._caller.broadcast_batch(stream, payloads)
            result = Result.STORED
        except Refused:
            self.refused += 1
            result = Result.REFUSED
        except (Uncertain, Unexpected) as error:
            self._count(error)
            result = Result.UNKNOWN
        ended = now()
        for id_, position in zip(ids, positions, strict=True):
            self.sent.append(Sent(stream, id_, begun, position, result, ended))

    def _count(self, error: Exception) -> None:
        if isinstance(error, Refused):
            self.refused += 1
        else:
            self.uncertain += 1
        if isinstance(error, Unexpected):
            self.complaints.append(str(error))

    def _next_id(self) -> str:
        return f"{self._caller.name}-{next(self._numbers)}"

    async def broadcast_until_stored(self, stream: str) -> None:
        """Broadcast until a message is stored, and record an error if that takes too long."""
        end = now() + REPEAT_FOR
        while (await self.broadcast(stream)).position is None:
            if now() > end:
                self.complaints.append(f"no broadcast to {stream!r} was stored for {REPEAT_FOR:g} s")
                return
            await asyncio.sleep(REPEAT)
