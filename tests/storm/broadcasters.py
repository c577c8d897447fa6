"""Who broadcasts in the storm: a server's own view, another process, and a Celery worker."""

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
from .truth import Fate, Position, Sent

#: Seconds that a call may take; an append tries for 8 s before it gives up.
CALL_TIMEOUT = 40.0
#: Seconds until a call whose fate is unknown is repeated.
REPEAT = 0.2
#: How long, in seconds, a call with an unknown result is repeated, and a broadcast may be refused at the end.
REPEAT_FOR = 60.0
#: The part of the broadcasts to durable streams that is made in a transaction.
IN_TRANSACTION = 0.3
#: Errors that `atomic()` raises when its own database fails. The package is not to blame for these.
DATABASE_ERRORS = ("OperationalError:", "InterfaceError:", "InternalError:", "DatabaseError:")


class Refused(Exception):
    """The call raised `BroadcastError`: nothing is stored."""


class Uncertain(Exception):
    """The call raised `BroadcastUncertain`, or its answer was lost."""


class Unexpected(Exception):
    """The call raised an error that is not documented. Its result is unknown."""


class Caller(ABC):
    """Makes calls (tests/integration/project/calls.py) in some process."""

    name: str

    async def broadcast(self, stream: str, data: Any, key: str | None) -> Position:
        """Broadcast, and return the position.

        Raises:
            Refused: nothing is stored.
            Uncertain: it may be stored.
            Unexpected: it raised an error that is not documented.
        """
        result = await self._ask("broadcast", stream, data, idempotency_key=key)
        return result["epoch"], result["offset"]

    async def broadcast_batch(self, stream: str, payloads: Sequence[Any]) -> list[Position]:
        """Broadcast a batch, and return the positions.

        Raises:
            Refused, Uncertain, Unexpected: as for `broadcast`; they concern the whole batch.
        """
        result = await self._ask("broadcast_batch", stream, payloads)
        return [(position["epoch"], position["offset"]) for position in result]

    async def commit_broadcasts(
        self, stream: str, payloads: Sequence[Any], *, commit: bool, hold: float
    ) -> dict[str, Any]:
        """Broadcast in a transaction, and commit it or roll it back; return what `calls.commit_broadcasts` does.

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
        """Make a call; return its `result` or its `error`."""

    async def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Release what it holds."""


class ViewCaller(Caller):
    """A view of a server, one of several by chance; the answer is lost when that server is killed."""

    def __init__(self, servers: Sequence[Server], rng: random.Random, name: str = "view") -> None:
        self.name = name
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
    """Broadcasts again and again, and records the result of each broadcast.

    Args:
        caller: the process that makes the calls.
        rng: chooses streams and pauses.
        plan: the plan of the storm.
    """

    def __init__(self, caller: Caller, rng: random.Random, plan: Plan) -> None:
        self.sent: list[Sent] = []
        #: How many calls ended each way; one that was repeated counts each time.
        self.refused = self.uncertain = 0
        #: Errors that are not documented.
        self.complaints: list[str] = []
        self._caller = caller
        self._rng = rng
        self._plan = plan
        self._numbers = itertools.count(1)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Broadcast until `stop`."""
        while not self._stopping.is_set():
            stream = self._rng.choice(STREAMS)
            if stream in DURABLE and self._rng.random() < IN_TRANSACTION:
                await self.broadcast_in_transaction(stream, commit=self._rng.random() < 0.8)
            else:
                await self.broadcast(stream)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._rng.uniform(0, 2 * self._plan.pause))

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
            except (Refused, Uncertain, Unexpected) as error:
                self._count(error)
                if isinstance(error, Refused) and fate is Fate.STORED:
                    fate = Fate.REFUSED
                    break
                fate = Fate.UNKNOWN
                if key is None:
                    break
                if now() > begun + REPEAT_FOR:
                    self.complaints.append(
                        f"the fate of {id_} in {stream!r} is unknown after {REPEAT_FOR:g} s: {error}"
                    )
                    break
            await asyncio.sleep(REPEAT)
        self.sent.append(Sent(stream, id_, begun, position, fate, now()))
        return self.sent[-1]

    async def broadcast_in_transaction(
        self, stream: str, count: int = 1, *, commit: bool = True, hold: float = 0.0
    ) -> None:
        """Broadcast messages in one transaction.

        Args:
            stream: the name of the stream.
            count: how many messages.
            commit: whether the transaction is committed.
            hold: how many seconds to wait between the broadcasts and the commit.
        """
        ids = [self._next_id() for _ in range(count)]
        begun = now()
        try:
            payloads = [{"id": id_, "stream": stream} for id_ in ids]
            answer = await self._caller.commit_broadcasts(stream, payloads, commit=commit, hold=hold)
            fate = self._fate(stream, answer, commit=commit)
        except (Refused, Uncertain, Unexpected) as error:
            self._count(error)
            fate = Fate.UNKNOWN if commit else Fate.REFUSED
        self.sent += [Sent(stream, id_, begun, None, fate, now()) for id_ in ids]

    def _fate(self, stream: str, answer: Mapping[str, Any], *, commit: bool) -> Fate:
        """Return the fate of broadcasts in a transaction, and record complaints about errors."""
        error = answer["error"] or ""
        if answer["committed"]:
            if error:
                self.complaints.append(f"{self._caller.name}: atomic() raised after its commit to {stream!r}: {error}")
            if not answer["hooks"]:
                self.complaints.append(f"{self._caller.name}: hooks after the broadcasts to {stream!r} did not run")
            # Without a durable store a failure after the commit is only logged and signalled.
            return Fate.UNKNOWN if self._plan.in_redis(stream) else Fate.COMMITTED
        if not commit or error.startswith("BroadcastError:"):
            self.refused += bool(error)
            return Fate.REFUSED
        if not (self._plan.database_fails and error.startswith(DATABASE_ERRORS)):
            self.complaints.append(f"{self._caller.name}: atomic() with broadcasts to {stream!r} raised {error}")
        self.uncertain += 1
        return Fate.UNKNOWN

    async def broadcast_batch(self, stream: str, count: int) -> None:
        """Broadcast messages in one batch."""
        ids = [self._next_id() for _ in range(count)]
        begun = now()
        positions: Sequence[Position | None] = [None] * count
        try:
            payloads = [{"id": id_, "stream": stream} for id_ in ids]
            positions = await self._caller.broadcast_batch(stream, payloads)
            fate = Fate.STORED
        except Refused:
            self.refused += 1
            fate = Fate.REFUSED
        except (Uncertain, Unexpected) as error:
            self._count(error)
            fate = Fate.UNKNOWN
        ended = now()
        for id_, position in zip(ids, positions, strict=True):
            self.sent.append(Sent(stream, id_, begun, position, fate, ended))

    def _count(self, error: Exception) -> None:
        if isinstance(error, Refused):
            self.refused += 1
        else:
            self.uncertain += 1
        if isinstance(error, Unexpected):
            self.complaints.append(str(error))

    def _next_id(self) -> str:
        return f"{self._caller.name}-{next(self._numbers)}"

    async def broadcast_surely(self, stream: str) -> None:
        """Broadcast until one is stored; record a complaint if that takes too long."""
        end = now() + REPEAT_FOR
        while (await self.broadcast(stream)).position is None:
            if now() > end:
                self.complaints.append(f"no broadcast to {stream!r} was stored for {REPEAT_FOR:g} s")
                return
            await asyncio.sleep(REPEAT)
