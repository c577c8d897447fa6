"""Processes of Node, and readers that use `followRun` of the bundle with the unmodified client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from asyncio.subprocess import PIPE, Process
from types import TracebackType
from typing import Any, Self

from tests.node import FOLDER

from .plan import PATIENCE
from .readers import STAY, Reader
from .truth import RunTruth, as_followed

#: The number of connections that the readers share.
CABLES = 4


class NodeProcess:
    """A process of Node, which gets commands as lines of JSON. Use it with `async with`.

    Args:
        node: the path of Node.
        script: the name of the script.
        args: its arguments.
    """

    def __init__(self, node: str, script: str, *args: str) -> None:
        self._command = [node, str(FOLDER / script), *args]
        self._process: Process | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, limit=2**24)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def call(self, do: str, **values: Any) -> Any:
        """Send a command, and return its result."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._lock:
            self._process.stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
            return json.loads(await self._process.stdout.readline())


class Followers(NodeProcess):
    """The process of the readers that use `followRun`.

    Args:
        node: the path of Node.
        address: the address of the servers.
    """

    def __init__(self, node: str, address: str) -> None:
        super().__init__(node, "storm_runs.mjs", f"ws://{address}/cable", str(CABLES))


class FollowingReader(Reader):
    """A reader in Node. At each visit, it calls `followRun`."""

    kind = "followRun"

    def __init__(self, truth: RunTruth, address: str, rng: random.Random, followers: Followers) -> None:
        super().__init__(truth, address, rng)
        self._followers = followers
        self._last: Any = None

    async def run(self, delay: float) -> None:
        """After a delay, follow the run until its end."""
        await asyncio.sleep(delay)
        run = self.truth.run
        await self._followers.call("follow", run=run)
        while not self.truth.closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.truth.closing.wait(), self.rng.uniform(*STAY))
            if self.rng.random() < 0.5:
                await self._followers.call("follow", run=run)
            elif self.rng.random() < 0.1:
                await self._followers.call("cut")
        try:
            async with asyncio.timeout(PATIENCE):
                await self.read()
        except TimeoutError:
            self.complaints.append(f"{self.kind}: {run} has not ended; {self.describe()}")
        left = await self._followers.call("leave", run=run)
        self.counts["visits"] += left["follows"]
        if left["broken"]:
            self.complaints.append(f"followRun: {run}: the added texts are not the text")
        for end in left["ends"]:
            self.see(end)

    async def read(self) -> None:
        """Wait until the reader has the last answer."""
        final = self.truth.final
        assert final is not None
        status, _, text, parts = as_followed(final)
        while True:
            self._last = await self._followers.call("report", run=self.truth.run)
            if [self._last[key] for key in ("state", "text", "parts")] == [status, text, parts]:
                return
            await asyncio.sleep(0.2)

    def describe(self) -> str:
        """Return a short description of the last report."""
        last = self._last or {}
        ends = [(end[0], len(end[2])) for end in last.get("ends", ())]
        return f"{last.get('state')} {len(last.get('text', ''))} {ends}"
