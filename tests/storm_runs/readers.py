"""Readers in Python that come and go: of the channel, of the AI SDK's stream, and of AG-UI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import httpx
from websockets.exceptions import WebSocketException

from reliable_cable.runs.http.ag_ui import build_messages
from reliable_cable.runs.http.reading import LOST, RESTARTING
from reliable_cable.runs.http.translating import BEGUN_ANEW
from reliable_cable.runs.http.ui_messages import build_message
from tests.support.client import Client, Frame, identify
from tests.support.recovering import RecoveringClient
from tests.support.run_reader import RunReader

from .plan import PATIENCE
from .truth import RunTruth, Seen, as_agent_messages, as_channel, as_ui_message

#: The shortest and the longest time, in seconds, for which a reader stays.
STAY = (0.2, 2.5)
#: The kinds of the readers that read a run as a durable stream.
DURABLE_KINDS = ("durable SSE", "durable long-poll")
#: The errors after which a client loads the answer again.
AGAIN = (RESTARTING, LOST, BEGUN_ANEW)


class Reader(ABC):
    """A reader of one run. It reads in *visits* of random length. After the end of the run, it reads to the end.

    Args:
        truth: what is known about the run.
        address: the address of the servers.
        rng: chooses how long the reader stays.
    """

    kind: str

    def __init__(self, truth: RunTruth, address: str, rng: random.Random) -> None:
        self.truth = truth
        self.address = address
        self.rng = rng
        self.complaints: list[str] = []
        #: How often each event happened, by its name, such as "visits".
        self.counts: Counter[str] = Counter()

    async def run(self, delay: float) -> None:
        """After a delay, read the run until its end. Record a complaint if the last visit takes too long."""
        await asyncio.sleep(delay)
        closing = asyncio.ensure_future(self.truth.closing.wait())
        try:
            while True:
                self.counts["visits"] += 1
                visit = asyncio.create_task(self.read())
                stay = self.rng.uniform(*STAY)
                await asyncio.wait({visit, closing}, timeout=stay, return_when=asyncio.FIRST_COMPLETED)
                if closing.done():
                    await asyncio.wait({visit}, timeout=PATIENCE)
                    if not visit.done():
                        self.complaints.append(f"{self.kind}: {self.truth.run} has not ended; {self.describe()}")
                if visit.done():
                    return visit.result()
                visit.cancel()
                await asyncio.wait({visit})
        finally:
            closing.cancel()

    def see(self, answer: Any) -> None:
        """Record an answer that was read to its end."""
        self.truth.seen.append(Seen(self.kind, answer))

    @abstractmethod
    async def read(self) -> None:
        """Read the run until the end of its last attempt."""

    @abstractmethod
    def describe(self) -> str:
        """Return a description of what the reader has received."""


class _Page(RecoveringClient):
    """A page that has subscribed to a run."""

    def __init__(self, url: str, cookie: str, reader: ChannelReader, *, restoring: bool) -> None:
        super().__init__(url, cookie=cookie, restoring=restoring)
        self.answer = RunReader()
        self._reader = reader
        self.channels[reader.identifier] = "connecting"

    async def _receive(self, client: Client, frame: Frame) -> None:
        message = frame.get("message")
        if frame.get("identifier") == self._reader.identifier and isinstance(message, dict) and "event" in message:
            had_ended = (self.answer.attempt, self.answer.ended)
            self.answer.add(message)
            if self.answer.ended and had_ended != (self.answer.attempt, True):
                self._reader.see(self._reader.of_page(self.answer))
        await super()._receive(client, frame)


class ChannelReader(Reader):
    """A reader of `RunChannel` over WebSocket. Each visit opens a page. The page may lose its connection, and recovers.

    Args:
        restoring: whether pages recover by a restore of their sessions. Otherwise, they use only their positions.
    """

    kind = "channel"

    def __init__(self, truth: RunTruth, address: str, rng: random.Random, cookie: str, *, restoring: bool) -> None:
        super().__init__(truth, address, rng)
        self.identifier = identify("RunChannel", id=truth.run)
        self._cookie = cookie
        self._restoring = restoring
        self._page: _Page | None = None
        #: Whether the next page that is connected stops the run.
        self.stops = False

    def of_page(self, answer: RunReader) -> Any:
        """Return the answer that a page has, in the form of `as_channel`."""
        return [answer.attempt, answer.status, answer.text, answer.parts]

    async def read(self) -> None:
        """Open a page, and read until the answer of the page is the last one."""
        page = self._page = _Page(f"ws://{self.address}/cable", self._cookie, self, restoring=self._restoring)
        try:
            async with page:
                while not self._is_last(page.answer):
                    await asyncio.sleep(0.05)
                    if self.stops and page.connected and page.channels[self.identifier] == "connected":
                        self.stops = False
                        with contextlib.suppress(WebSocketException):
                            await page.perform(self.identifier, "stop")
                    if not self.truth.closing.is_set() and self.rng.random() < 0.03:
                        with contextlib.suppress(OSError):  # the connection was lost in this moment
                            self.counts["cuts"] += await page.cut()
        finally:
            self.complaints += [f"channel: {frame}" for frame in page.complaints]
            self.counts["connections"] += page.connects
            self.counts["restores"] += page.restores
            self.counts["snapshots"] += page.answer.names.count("snapshot")

    def _is_last(self, answer: RunReader) -> bool:
        final = self.truth.final
        return final is not None and answer.ended and answer.attempt >= final.attempt

    def describe(self) -> str:
        """Return the state of the page."""
        page = self._page
        if page is None:
            return "there is no page"
        answer = page.answer
        return f"{answer.attempt} {answer.status} {len(answer.text)} {answer.names[-3:]} {page.channels} {page.infos}"


class HttpReader(Reader):
    """A reader that receives the run over HTTP, as server-sent events."""

    def __init__(self, truth: RunTruth, address: str, rng: random.Random, http: httpx.AsyncClient) -> None:
        super().__init__(truth, address, rng)
        self.http = http
        self.last: Any = None

    async def events(self, method: str, path: str, **options: Any) -> AsyncGenerator[Any, None]:
        """Yield the events of a response, or None if the status is 204. A broken connection ends the iteration."""
        with contextlib.suppress(httpx.TransportError, httpx.StreamError):
            async with self.http.stream(method, f"http://{self.address}/runs/{path}", **options) as response:
                self.counts[f"status {response.status_code}"] += 1
                if response.status_code == httpx.codes.NO_CONTENT:
                    yield None
                elif response.status_code != httpx.codes.OK:
                    self.complaints.append(f"{self.kind}: {response.status_code} {await response.aread()!r}")
                else:
                    # `aiter_lines` of httpx also splits lines at characters such as U+2028, which events may contain.
                    rest = b""
                    async for data in response.aiter_bytes():
                        *lines, rest = (rest + data).split(b"\n")
                        for line in lines:
                            if line.startswith(b"data: {"):
                                self.last = json.loads(line.removeprefix(b"data: "))
                                yield self.last

    def describe(self) -> str:
        """Return the last event and the counts."""
        return f"{self.last} {dict(self.counts)}"


class UiReader(HttpReader):
    """A reader that requests the run as `useChat` does.

    With a complete answer, it requests the active run of the chat; without one, the newest run, which may have ended.
    """

    kind = "AI SDK"

    async def read(self) -> None:
        """Resume repeatedly, until the last answer has been read."""
        is_complete = False
        while True:
            chunks: list[dict[str, Any]] = []
            path = f"chat/{self.truth.chat}/stream{'' if is_complete else '?ended'}"
            async with contextlib.aclosing(self.events("GET", path)) as events:
                async for chunk in events:
                    if chunk is not None:
                        chunks.append(chunk)
                    elif self.truth.final is not None:
                        is_complete = False  # the page is loaded again, with the question only
            answer = self._ended(chunks)
            if answer is not None:
                is_complete = True
                self.see(answer)
                final = self.truth.final
                if final is not None and answer == as_ui_message(self.truth.run, final):
                    return
            await asyncio.sleep(0.1)

    def _ended(self, chunks: list[dict[str, Any]]) -> Any:
        """Return the status and the message if these chunks are the whole answer, else None."""
        types = [chunk["type"] for chunk in chunks]
        if "finish" in types:
            status = "stopped" if "abort" in types else "completed"
        elif types[-1:] == ["error"] and chunks[-1]["errorText"] not in AGAIN:
            status = "failed"
        else:
            self.counts["interrupted"] += types[-1:] == ["error"]
            return None
        return [status, build_message(chunks)]


class AgentReader(HttpReader):
    """A reader that connects to the run as a client of AG-UI does.

    At each visit, it begins with the messages that it has, or without messages, like a new client.
    """

    kind = "AG-UI"

    def __init__(self, truth: RunTruth, address: str, rng: random.Random, http: httpx.AsyncClient) -> None:
        super().__init__(truth, address, rng, http)
        self._messages: list[dict[str, Any]] = []

    async def read(self) -> None:
        """Connect repeatedly, until the last answer has been read."""
        if self.rng.random() < 0.5:
            self._messages = []
        while True:
            body = {"threadId": self.truth.chat, "messages": self._messages}
            had, got = self._messages, []
            async with contextlib.aclosing(self.events("POST", "ag-ui/connect", json=body)) as events:
                async for event in events:
                    got.append(event)
                    self._messages = build_messages(got, had)
            answer = self._ended(got)
            if answer is not None:
                self.see(answer)
                final = self.truth.final
                if final is not None and answer == as_agent_messages(self.truth.run, final):
                    return
            await asyncio.sleep(0.1)

    def _ended(self, events: list[dict[str, Any]]) -> Any:
        """Return the status and the messages if the last event is the end of the run, else None."""
        match events[-1] if events else {}:
            case {"type": "RUN_FINISHED", "outcome": {"type": "cancelled"}}:
                return ["stopped", self._messages]
            case {"type": "RUN_FINISHED"}:
                return ["completed", self._messages]
            case {"type": "RUN_ERROR", "code": "failed"}:
                return ["failed", self._messages]
        self.counts["interrupted"] += bool(events and events[-1]["type"] == "RUN_ERROR")
        return None


def expected(truth: RunTruth, kind: str) -> list[Any]:
    """Return the answers of all attempts, in the form in which a kind of reader records them.

    A reader of this kind may record no other answers.
    """
    answers = truth.answers.values()
    if kind in ("channel", *DURABLE_KINDS):
        return [as_channel(answer) for answer in answers]
    if kind == "AI SDK":
        return [as_ui_message(truth.run, answer) for answer in answers]
    return [as_agent_messages(truth.run, answer) for answer in answers]
