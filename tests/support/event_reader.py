"""A reader of server-sent events that behaves like a browser's `EventSource`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.server import LOCAL

#: How long, in seconds, to wait for an event.
PATIENCE = 30.0
#: The pause, in seconds, before a reader reconnects. Browsers wait for a few seconds.
RETRY = 0.05


@dataclass(frozen=True)
class ServerEvent:
    """An event: its type, its data, and the last event id at its arrival."""

    type: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        """The data, decoded from JSON."""
        return json.loads(self.data)


class EventParser:
    """Parses the lines of a response as the HTML standard says."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry: int | None = None
        self._id = last_id
        self._type = ""
        self._data: list[str] = []
        self.comments: list[str] = []

    def feed(self, line: str) -> ServerEvent | None:
        """Parse a line, given without its line ending. Return the event that the line completes, if any."""
        if not line:
            self.last_id = self._id
            event = ServerEvent(self._type or "message", "\n".join(self._data), self._id) if self._data else None
            self._type, self._data = "", []
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self.comments.append(value)
            case "event":
                self._type = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isdecimal():
                self.retry = int(value)
        return None


class EventReader:
    """A reader that reconnects after its connection was lost. Use it as an async context manager.

    Args:
        url: the URL of the server, or a function that returns it and is called before each connection.
        query: the query, without the question mark.
        headers: headers of the requests.
    """

    def __init__(self, url: str | Callable[[], str], query: str, headers: Mapping[str, str] | None = None) -> None:
        self._url = url if callable(url) else lambda: url
        self._query = query
        self._headers = dict(headers or {})
        self.parser = EventParser()
        self.events: list[ServerEvent] = []
        self.connects = 0
        #: The status of the response after which the reader does not reconnect; None if there was no such response.
        self.status: int | None = None
        self.error: Any = None
        self.response_headers: httpx.Headers = httpx.Headers()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._response: httpx.Response | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @property
    def messages(self) -> list[Any]:
        """The data of the events of the type `message`, decoded from JSON."""
        return [event.json for event in self.events if event.type == "message"]

    def of_type(self, type_: str) -> list[ServerEvent]:
        """Return the events of a type."""
        return [event for event in self.events if event.type == type_]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true. It is checked when data arrive, and when a connection begins or ends."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            ended = f"ended: {self.status} {self.error}"
            raise AssertionError(f"connects: {self.connects}, {ended}, {self.events}") from None

    async def until_type(self, type_: str, number: int = 1) -> None:
        """Wait until at least `number` events of a type have arrived."""
        await self.until(lambda: len(self.of_type(type_)) >= number)

    async def until_ended(self) -> None:
        """Wait until the reader has got a response after which it does not reconnect."""
        await self.until(lambda: self.status is not None)

    async def cut(self) -> None:
        """Close the connection, and wait until the reader has reconnected."""
        assert self._response is not None
        connects = self.connects
        await self._response.aclose()
        await self.until(lambda: self.connects > connects)

    async def _run(self) -> None:
        async with httpx.AsyncClient(**{**LOCAL, "timeout": httpx.Timeout(PATIENCE, read=None)}) as http:
            while self.status is None:
                with contextlib.suppress(httpx.TransportError, httpx.StreamError):
                    await self._read(http)
                self._changed.set()
                await asyncio.sleep(RETRY)

    async def _read(self, http: httpx.AsyncClient) -> None:
        headers = {**self._headers}
        if self.parser.last_id:
            headers["Last-Event-ID"] = self.parser.last_id
        self.parser = EventParser(self.parser.last_id)
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        async with http.stream("GET", f"{self._url()}/events?{self._query}", headers=raw) as response:
            self.response_headers = response.headers
            if response.status_code != 200 or not response.headers["Content-Type"].startswith("text/event-stream"):
                await response.aread()
                self.status, self.error = response.status_code, response.json()
                return
            self._response = response
            self.connects += 1
            self._changed.set()
            # Unlike `aiter_lines` of httpx, this does not split lines at characters such as U+2028. The server ends
            # each line with a line feed.
            rest = b""
            async for part in response.aiter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    event = self.parser.feed(line.decode())
                    if event is not None:
                        self.events.append(event)
                self._changed.set()
