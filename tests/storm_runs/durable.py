"""Durable streams in a storm: readers with the npm client, and idempotent producers that are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from typing import Any

import httpx

from tests.support.run_reader import RunReader

from .npm import NodeProcess
from .plan import PATIENCE, now
from .readers import STAY, Reader
from .truth import RunTruth, as_channel

#: The ways in which readers wait for data, with the kinds of the readers.
LIVE = {"sse": "SSE", "long-poll": "long-poll"}
JSON = {"Content-Type": "application/json"}
#: How long, in seconds, to wait before a failed request is repeated, and before the state of a reader or producer in
#: Node is read again.
PAUSE = 0.1
#: The fraction of the requests during which a producer is killed. FORGOTTEN: the maximum number of requests before that
#: request which the producer then repeats, too.
KILLED = 0.15
FORGOTTEN = 4


class DurableReader:
    """A reader in Node of one durable stream. At each visit, it starts at the last offset or at the beginning.

    Args:
        node: the process of Node.
        key: identifies the reader.
        url: the URL of the stream.
        live: the way in which it waits for data, a key of `LIVE`.
        rng: chooses how long it stays.
    """

    def __init__(self, node: NodeProcess, key: str, url: str, live: str, rng: random.Random) -> None:
        self._node = node
        self._target = {"key": key, "url": url, "live": live}
        self._rng = rng
        self._last: Any = None

    async def visit(self, *, anew: bool = False) -> None:
        """Begin to read: at the beginning on the first visit or if `anew` is true, otherwise at the last offset."""
        await self._node.call("read", **self._target, anew=anew)

    async def come_and_go(self, closing: asyncio.Event) -> None:
        """Begin visits at random times until an event is set. Each visit ends the one before it."""
        while not closing.is_set():
            await self.visit(anew=self._rng.random() < 0.3)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closing.wait(), self._rng.uniform(*STAY))

    async def report(self) -> Any:
        """Return the state of the reader. If it has read the stream to its end, the state has all items."""
        self._last = await self._node.call("report", key=self._target["key"])
        return self._last

    async def leave(self) -> None:
        """End the last visit, and delete the state of the reader."""
        await self._node.call("forget", key=self._target["key"])

    def describe(self) -> str:
        """Return the last report, without its items."""
        return str({**(self._last or {}), "items": "…"})


class DurableRunReader(Reader):
    """A reader of a run as a durable stream."""

    def __init__(self, truth: RunTruth, address: str, rng: random.Random, node: NodeProcess, live: str) -> None:
        super().__init__(truth, address, rng)
        self.kind = f"durable {LIVE[live]}"
        url = f"http://{address}/runs/{truth.run}/durable"
        self._reader = DurableReader(node, f"{truth.run} {live}", url, live, rng)

    async def run(self, delay: float) -> None:
        """After a delay, read during visits until the run has ended, and then read the run to its end."""
        await asyncio.sleep(delay)
        going = asyncio.create_task(self._reader.come_and_go(self.truth.closing))
        try:
            await going
            async with asyncio.timeout(PATIENCE):
                await self.read()
        except TimeoutError:
            self.complaints.append(f"{self.kind}: {self.truth.run} has not ended; {self.describe()}")
        finally:
            going.cancel()
        _count(self.counts, self.complaints, self.kind, await self._reader.report())
        await self._reader.leave()

    async def read(self) -> None:
        """Read until the reader has the last answer.

        A closed stream is continued if the run has another attempt, so the reader may have to read again.
        """
        final = self.truth.final
        assert final is not None
        await self._reader.visit()
        while True:
            report = await self._reader.report()
            if report["closed"]:
                answer = RunReader()
                for event in report["items"]:
                    answer.add(event)
                seen = [answer.attempt, answer.status, answer.text, answer.parts]
                self.see(seen)
                if answer.attempt >= final.attempt or seen == as_channel(final):
                    return
                await self._reader.visit()
            await asyncio.sleep(PAUSE)

    def describe(self) -> str:
        """Return the last report, without its items."""
        return self._reader.describe()


class SharedStream:
    """A durable stream that two producers write: one in Node, with the npm client, and one that is killed often.

    Args:
        name: the name of the stream.
        address: the address of the servers.
        http: the HTTP client of the user.
        node: the process of Node.
        rng: makes all random choices.
        count: the number of messages of each producer.
        pause: the time, in seconds, between two messages.
    """

    def __init__(
        self,
        name: str,
        address: str,
        http: httpx.AsyncClient,
        node: NodeProcess,
        rng: random.Random,
        count: int,
        pause: float,
    ) -> None:
        self.url = f"http://{address}/runs/durable/{name}"
        self.complaints: list[str] = []
        self.findings: list[str] = []
        self.counts: Counter[str] = Counter()
        self._name = name
        self._http = http
        self._node = node
        self._rng = rng
        self._count = count
        self._pause = pause
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Create the stream, let producers write it and readers read it, and compare the readers with the database."""
        await self._request("PUT", (200, 201), headers=JSON)
        readers = {
            live: DurableReader(self._node, f"{self._name} {live}", self.url, live, random.Random(self._rng.random()))
            for live in LIVE
        }
        going = [asyncio.create_task(reader.come_and_go(self._closing)) for reader in readers.values()]
        try:
            await asyncio.gather(self._produce_in_node(), self._produce())
            await self._request("POST", (204,), headers={"Stream-Closed": "true"})
        except TimeoutError:
            self.complaints.append(f"a producer of {self._name} has written nothing for {PATIENCE} s")
        self._closing.set()
        await asyncio.gather(*going)
        stored = (await self._request("GET", (200,), params={"offset": "-1"})).json()
        for producer in ("npm", "task"):
            numbers = [number for name, number in stored if name == producer]
            self.counts["messages"] += len(numbers)
            if numbers != list(range(self._count)):
                self.findings.append(f"{self._name}: the messages of {producer} are not there once each: {numbers}")
        for live, reader in readers.items():
            await self._compare(f"stream {LIVE[live]}", reader, stored)

    async def _compare(self, kind: str, reader: DurableReader, stored: list[Any]) -> None:
        """Let a reader read to the end, and compare its items with the stored ones."""
        await reader.visit()
        end = now() + PATIENCE
        report = await reader.report()
        while not report["closed"] and now() < end:
            await asyncio.sleep(PAUSE)
            report = await reader.report()
        if not report["closed"]:
            self.complaints.append(f"{kind}: {self._name} has not ended; {reader.describe()}")
        elif report["items"] != stored:
            self.findings.append(f"{self._name}: {kind} has {report['items']}, and the database has {stored}")
        else:
            self.counts[f"{kind}: read to the end"] += 1
        _count(self.counts, self.complaints, kind, report, prefix=f"{kind}: ")
        await reader.leave()

    async def _produce_in_node(self) -> None:
        """Write with the producer of the npm client, which repeats a request whose response it did not get."""
        await self._node.call("produce", key=self._name, url=self.url, count=self._count, pause=self._pause)
        offset, changed_at = None, now()
        while True:
            state = await self._node.call("produced", key=self._name)
            self.complaints += [f"the producer of {self._name}: {error}" for error in state["errors"]]
            if state["done"] or state["errors"]:
                return
            if state.get("offset") != offset:
                offset, changed_at = state["offset"], now()
            if now() > changed_at + PATIENCE:
                raise TimeoutError
            await asyncio.sleep(PAUSE)

    async def _produce(self) -> None:
        """Write with a producer that is often killed during a request. It then repeats this request or some more."""
        number = 0
        while number < self._count:
            headers = {**JSON, "Producer-Id": "task", "Producer-Epoch": "0", "Producer-Seq": str(number)}
            life = self._rng.uniform(0.001, 0.05) if self._rng.random() < KILLED else None
            try:
                async with asyncio.timeout(life):
                    body = json.dumps([["task", number]])
                    response = await self._request("POST", (200, 204), content=body, headers=headers)
                    self.counts["messages that were repeated"] += response.status_code == httpx.codes.NO_CONTENT
            except TimeoutError:
                if life is None:
                    raise
                self.counts["producers killed"] += 1
                number = self._rng.randint(max(0, number - FORGOTTEN), number)
                continue
            number += 1
            await asyncio.sleep(self._pause)

    async def _request(self, method: str, expected: tuple[int, ...], **options: Any) -> httpx.Response:
        """Send a request, and repeat it until the response has an expected status.

        Raises:
            TimeoutError: this took longer than `PATIENCE`.
        """
        end = now() + PATIENCE
        while True:
            with contextlib.suppress(httpx.TransportError):
                response = await self._http.request(method, self.url, **options)
                if response.status_code in expected:
                    return response
                self.counts[f"{method}: {response.status_code}"] += 1
                if response.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    self.complaints.append(f"{self._name}: {method}: {response.status_code} {response.text}")
            if now() > end:
                raise TimeoutError
            await asyncio.sleep(PAUSE)


def _count(counts: Counter[str], complaints: list[str], kind: str, report: Any, prefix: str = "") -> None:
    counts[f"{prefix}visits"] += report["visits"]
    counts[f"{prefix}losses"] += report["losses"]
    complaints += [f"{kind}: {error}" for error in report["errors"]]
