"""Readers of server-sent events without a server, for tests of `GET /events`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from reliable_cable import CableConsumer
from reliable_cable.connection.connection import Connection
from reliable_cable.consumer import get_hub
from reliable_cable.http import CableHTTP
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.streams.base import Message
from tests.support.event_reader import EventParser, ServerEvent
from tests.unit.http_fronts import elsewhere, make_scope

SETTINGS = {"ENGINE": "memory", "SECRET": "a secret", "PUBLIC_STREAMS": True, "PING_INTERVAL": 60}


class Anyone(CableConsumer):
    """A consumer that lets everybody connect, with the default rules for origins."""


class Reader:
    """A request whose events are collected. Use this object as an async context manager.

    Args:
        query: the query.
        last_id: the header `Last-Event-ID`.
        application: the ASGI application; by default `CableHTTP` with the consumer `Anyone`.
        headers: the other headers.
        method: the method.
        body: the parts of the body.
    """

    def __init__(
        self,
        query: str,
        last_id: str = "",
        *,
        application: Any = None,
        headers: Any = (),
        method: str = "GET",
        body: Sequence[bytes] = (),
    ) -> None:
        self.application = application or CableHTTP(elsewhere, consumer=Anyone)
        found = [*headers, *([(b"last-event-id", last_id.encode())] if last_id else [])]
        self.scope = make_scope(method, "/events", found, query_string=query.encode())
        self._parts = list(body) or [b""]
        self.body = b""
        self.status: int | None = None
        self._left = asyncio.Event()
        self._changed = asyncio.Event()
        #: Cleared while the reader accepts no more data.
        self.accepts = asyncio.Event()
        self.accepts.set()

    async def __aenter__(self) -> Reader:
        self._task = asyncio.create_task(self.application(self.scope, self._receive, self._send))
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._left.set()
        await self._task

    async def _receive(self) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self._parts:
            return {"type": "http.request", "body": self._parts.pop(0), "more_body": bool(self._parts)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.body += message.get("body", b"")
        self._changed.set()
        await self.accepts.wait()

    async def until(self, text: str, number: int = 1) -> None:
        """Wait until the body contains a string at least `number` times."""
        async with asyncio.timeout(10):
            while self.body.decode(errors="replace").count(text) < number:
                self._changed.clear()
                await self._changed.wait()

    def read(self, size: int | None = None) -> tuple[list[ServerEvent], str]:
        """Return the events in the first `size` bytes, and the last event id."""
        text = self.body[:size].decode(errors="replace")
        parser = EventParser()
        events = [found for found in map(parser.feed, text.split("\n")[:-1]) if found is not None]
        return events, parser.last_id


async def broadcast(stream: str, *values: Any) -> None:
    await get_engine().streams.aappend([(stream, Message(json.dumps(value))) for value in values])


def only_connection() -> Connection:
    """Return the only connection of this event loop."""
    [connection] = get_hub().connections.all()
    assert isinstance(connection, Connection)
    return connection
