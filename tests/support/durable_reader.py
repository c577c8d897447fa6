"""A client that reads a durable stream over HTTP, and comes back after errors, as `@durable-streams/client` does."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import httpx

Live = Literal["long-poll", "sse"]

#: How long, in seconds, the client waits before it comes back after an error.
PAUSE = 0.1


class DurableReader:
    """Reads a stream of JSON values to its end.

    Args:
        http: the HTTP client.
        url: the URL of the stream.
        live: how to wait for new data.
    """

    def __init__(self, http: httpx.AsyncClient, url: str, live: Live) -> None:
        self.live = live
        self.values: list[Any] = []
        #: The statuses of the responses, and how often each came. The key 0 counts connections that were refused.
        self.statuses: Counter[int] = Counter()
        self._http = http
        self._url = url
        self._offset = "-1"
        self._closed = False
        self._changed = asyncio.Event()

    async def read(self) -> None:
        """Read until the stream is closed."""
        while not self._closed:
            with contextlib.suppress(httpx.TransportError):
                await (self._read_sse() if self.live == "sse" else self._poll())
                continue
            self._count(0)
            await asyncio.sleep(PAUSE)

    async def until(self, condition: Callable[[DurableReader], object]) -> None:
        """Wait until a condition about this reader is true."""
        while not condition(self):
            self._changed.clear()
            await self._changed.wait()

    async def _poll(self) -> None:
        response = await self._http.get(self._url, params={"offset": self._offset, "live": self.live})
        await self._check(response)
        if response.is_success:
            self._add(response.json() if response.content else [])
            self._offset = response.headers["Stream-Next-Offset"]
            self._closed = response.headers.get("Stream-Closed") == "true"

    async def _read_sse(self) -> None:
        params = {"offset": self._offset, "live": self.live}
        async with self._http.stream("GET", self._url, params=params) as response:
            await self._check(response)
            if not response.is_success:
                return
            pending: list[Any] = []
            kind, data = "", ""
            async for line in response.aiter_lines():
                if line.startswith("event:"):
                    kind = line.removeprefix("event:").strip()
                elif line.startswith("data:"):
                    data += line.removeprefix("data:")
                elif not line and kind:
                    value = json.loads(data)
                    if kind == "data":
                        pending += value
                    else:
                        # The client has the data only when it knows where to read on.
                        self._offset = value["streamNextOffset"]
                        self._closed = value.get("streamClosed", False)
                        self._add(pending)
                        pending = []
                    kind = data = ""

    async def _check(self, response: httpx.Response) -> None:
        self._count(response.status_code)
        if not response.is_success:
            await response.aread()
            assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE, response.text
            assert response.headers["Retry-After"] == "1"
            assert response.json()["error"]
            await asyncio.sleep(PAUSE)

    def _count(self, status: int) -> None:
        self.statuses[status] += 1
        self._changed.set()

    def _add(self, values: list[Any]) -> None:
        self.values += values
        self._changed.set()
