"""A hub with one stream, and a store that announces no messages by itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from reliable_cable.conf import CableSettings, read_settings
from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox
from reliable_cable.exceptions import StoreError
from reliable_cable.hub.hub import Hub
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, StreamPage
from reliable_cable.stores.engine import Engine
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.sessions.memory import MemorySessionStore
from reliable_cable.stores.streams.base import Message, Published, StreamEvent, StreamListener
from reliable_cable.stores.streams.memory import MemoryStreamStore
from tests.support.subscriber import LoneSubscriber


class UnreliableStore(MemoryStreamStore):
    """A memory store that announces nothing by itself: tests call `Hub.deliver`. Reads fail while `broken` is set."""

    broken = False

    def __init__(self, settings: CableSettings) -> None:
        super().__init__(settings)
        self.deliver: Callable[[StreamEvent], None] = lambda event: None
        #: Announcements that are delivered during the next fence.
        self.announced_during_fence: list[StreamEvent] = []
        #: The streams for which `doubt` of the listener was called.
        self.doubted: list[str] = []
        #: The streams to which the listener is subscribed.
        self.subscribed: set[str] = set()
        self.reads = 0
        #: The lineage of the data.
        self.lineage = ""
        #: Called after each read, before the page is returned.
        self.after_read: Callable[[], object] = lambda: None

    def listen(self, deliver: Callable[[StreamEvent], None]) -> StreamListener:
        self.deliver = deliver
        return SilentListener(self)

    def go_back(self, messages: int) -> None:
        """Lose the newest messages of the stream, like a database that was restored from a backup."""
        stream = self._streams["s"]
        for _ in range(messages):
            stream.kept.pop()
            stream.tail -= 1

    def fail_over(self, lineage: str) -> None:
        """Lose all messages and change the lineage, as in a failover to a server that has no messages."""
        self._streams.clear()
        self.lineage = lineage

    async def alineage(self, *, durable: bool = False) -> str:
        return self.lineage

    async def aread(
        self,
        stream: str,
        *,
        after: int,
        limit: int,
        max_size: int | None = None,
        known: StreamPosition | None = None,
        following: bool = False,
    ) -> StreamPage:
        self.reads += 1
        await asyncio.sleep(0)  # as in a real read, so that live messages can arrive first
        if self.broken:
            raise StoreError("broken")
        page = self.read(stream, after=after, limit=limit, max_size=max_size, following=following)
        page = replace(page, lineage=self.lineage)
        self.after_read()
        await asyncio.sleep(0)
        return page


class SilentListener(StreamListener):
    """A listener that announces nothing, except for the events that a test has prepared for a fence."""

    def __init__(self, store: UnreliableStore) -> None:
        self._store = store

    async def subscribe(self, stream: str) -> None:
        self._store.subscribed.add(stream)

    async def unsubscribe(self, stream: str) -> None:
        self._store.subscribed.remove(stream)

    async def close(self) -> None:
        pass

    async def fence(self) -> None:
        events, self._store.announced_during_fence = self._store.announced_during_fence, []
        for event in events:
            self._store.deliver(event)

    def doubt(self, stream: str) -> None:
        self._store.doubted.append(stream)


class Harness:
    """A hub with one stream, `s`, and subscribers whose frames are recorded."""

    def __init__(self, **options: Any) -> None:
        self.settings = read_settings({"ENGINE": "memory", **options})
        self.store = UnreliableStore(self.settings)
        engine = Engine(self.store, MemoryPresenceStore(self.settings), MemorySessionStore(self.settings))
        self.hub = Hub(engine, self.settings)

    async def subscriber(self, identifier: str = "I", stream_id: str | None = "s") -> tuple[LoneSubscriber, list[Any]]:
        """Return a live subscriber and the list of its messages, in which "lost" stands for the notice of a loss."""
        log: list[Any] = []

        async def send(message: dict[str, Any]) -> None:
            log.append(json.loads(message["text"]))

        outbox = Outbox(send, account=Account(10**6), overflow=lambda: None)
        subscriber = LoneSubscriber(outbox, identifier, stream_id, frozenset(["sid"]), lambda: log.append("lost"))
        await subscriber.join(self.hub, "s")
        assert not subscriber.is_behind
        subscriber.confirmed = True
        subscriber.resume()
        return subscriber, log

    def append(self, data: str = "1", exclude: str = "") -> Published:
        """Store a message without announcing it."""
        position = self.store.append([("s", Message(data, exclude))])[0]
        return Published("s", position.epoch, Entry(position.offset, data, exclude))

    async def announce(self, data: str = "1", exclude: str = "") -> Published:
        """Store a message, announce it, and wait for the repairs that it causes. It may not have been written yet."""
        event = self.append(data, exclude)
        self.hub.deliver(event)
        await self._wait_for_repairs()
        return event

    async def publish(self, data: str = "1", exclude: str = "") -> Published:
        """Store a message, announce it, and wait until the hub has written it."""
        event = await self.announce(data, exclude)
        await self.wait_until_written()
        return event

    async def wait_until_written(self) -> None:
        """Wait until no repair is running, and the hub has written all queued messages to its subscribers.

        This can take some milliseconds, because a stream pauses after a batch that took long to send.
        """
        await self._wait_for_repairs()
        while any(stream._sending is not None for stream in self.hub._streams.values()):  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def _wait_for_repairs(self) -> None:
        while tasks := [stream.repair for stream in self.hub._streams.values() if stream.repair is not None]:
            await asyncio.wait(tasks)


def offsets(log: list[Any]) -> list[Any]:
    """Return the offsets of the messages in a log, and "lost" for each notice of a loss."""
    return [frame if frame == "lost" else frame["offset"] for frame in log]


async def catch_up(harness: Harness, subscriber: LoneSubscriber) -> bool:
    """Let a subscriber catch up and go live. Return whether it received all messages."""
    complete = True
    while subscriber.is_behind:
        complete = await harness.hub.catch_up.send_page(subscriber.stream, subscriber) and complete
    subscriber.resume()
    return complete
