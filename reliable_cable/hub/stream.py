"""A stream in the hub: its readers, how far it was delivered, and what is on its way to them.

What comes in one turn of the event loop goes out in one write to each reader, and what goes to many in slices, between
which the event loop turns to others.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Protocol

from reliable_cable.protocol import messages
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, Verdict, judge
from reliable_cable.stores.streams.base import Published, Transient

from .fanout import Batch, Group, GroupKey, Numbered, Reader, group_key, size_of, weigh

logger = logging.getLogger("reliable_cable")

#: Readers who are sent something in one turn of the event loop, at most.
SLICE = 250

#: Messages that go out in one write, at most, and characters of their payloads unless it is one.
MAX_BATCH = 100
MAX_BATCH_SIZE = 32 * 1024

#: Seconds that a stream rests after sending something took as long; shorter ones are none.
REST_LEAST = 0.002
REST_MOST = 0.02

#: Characters of announced messages that are kept while those before them are read.
MAX_EARLY = 4 * 1024 * 1024


class Ear(Protocol):
    """Takes a stream's messages for this process, not for a client."""

    def hear(self, data: str) -> None:
        """Take a numbered message."""

    def lost(self) -> None:
        """Messages are missing for good."""


class HubStream:
    """A stream that has readers here, and how far the hub has delivered it."""

    __slots__ = (
        "_early",
        "_early_size",
        "_outgoing",
        "_sending",
        "again",
        "ear",
        "groups",
        "name",
        "opening",
        "position",
        "repair",
        "uses",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.position: StreamPosition | None = None
        self.groups: dict[GroupKey, Group] = {}
        self.ear: Ear | None = None
        self.uses = 0
        self.opening: asyncio.Task[None] | None = None
        self.repair: asyncio.Task[None] | None = None
        self.again = False
        #: Announced messages that came before the ones that are being read.
        self._early: list[Published | Transient] = []
        self._early_size = 0
        self._outgoing: deque[Numbered | Transient] = deque()
        #: What goes on with it: after this turn of the event loop, or in those that follow.
        self._sending: asyncio.Handle | asyncio.Task[None] | None = None

    def group(self, reader: Reader) -> Group:
        """Return the group that a reader belongs to."""
        key = group_key(reader)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(*key)
        return group

    def drop(self, reader: Reader) -> None:
        """Take a reader out of its group, which goes with its last one."""
        group = self.group(reader)
        group.readers.pop(reader, None)
        if not group.readers:
            del self.groups[group_key(reader)]

    def send(self, entry: Entry, epoch: str) -> None:
        """Send a numbered message to every live reader; the hub then stands behind it."""
        former, self.position = self.position, StreamPosition(epoch, entry.offset)
        if self.ear is not None:
            self.ear.hear(entry.data)
        self._send(Numbered(entry, former, self.position))

    def keep_early(self, event: Published | Transient) -> None:
        """Keep a message until those before it have been read. Messages beyond `MAX_EARLY` are not kept."""
        if self._early_size + len(event.data) <= MAX_EARLY:
            self._early.append(event)
            self._early_size += len(event.data) + 1

    def send_early(self) -> None:
        """Send the kept messages that come next. One without a position is sent after those that came before it."""
        early, self._early, self._early_size = self._early, [], 0
        for event in early:
            if isinstance(event, Transient):
                if self.has_early:
                    self.keep_early(event)
                else:
                    self._send(event)
                continue
            verdict = Verdict.REPEAT if self.position is None else judge(self.position, event.epoch, event.offset)
            if verdict is Verdict.NEXT:
                self.send(Entry(event.offset, event.data, event.exclude), event.epoch)
            elif verdict is Verdict.GAP:
                self.keep_early(event)

    @property
    def has_early(self) -> bool:
        """Whether messages are kept because others before them are missing."""
        return bool(self._early)

    def drop_early(self) -> None:
        """Drop the kept messages with a position, which were read or lost. Send the others."""
        early, self._early, self._early_size = self._early, [], 0
        for event in early:
            if isinstance(event, Transient):
                self._send(event)

    def send_transient(self, event: Transient) -> None:
        """Send a message without a position to every reader, after the messages that came before it."""
        if self.has_early:
            self.keep_early(event)
        else:
            self._send(event)

    def _send(self, item: Numbered | Transient) -> None:
        loop = asyncio.get_running_loop()
        if self._sending is not None:
            self._outgoing.append(item)
        elif self.uses * weigh(size_of(item)) <= SLICE:
            batch = Batch([item])
            try:
                for group in self.groups.values():
                    group.pack(batch).send(group.readers)
            except Exception:
                self._failed()
            # Whatever else comes in this turn goes out together.
            self._sending = loop.call_soon(self._go_on, loop)
        else:
            self._outgoing.append(item)
            self._go_on(loop)

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sending = loop.create_task(self._send_outgoing()) if self._outgoing else None

    async def _send_outgoing(self) -> None:
        loop = asyncio.get_running_loop()
        rest = 0.0
        try:
            room = SLICE
            while self._outgoing and not rest:
                started = loop.time()
                batch = Batch(self._next())
                for group in list(self.groups.values()):
                    parcel = group.pack(batch)
                    readers = list(group.readers)
                    while readers:
                        some = readers[: max(1, room // parcel.weight)]
                        parcel.send(some)
                        del readers[: len(some)]
                        room -= len(some) * parcel.weight
                        if room <= 0:
                            await asyncio.sleep(0)
                            room = SLICE
                took = loop.time() - started
                if took >= REST_LEAST and len(self._outgoing) < MAX_BATCH:
                    rest = min(took, REST_MOST)
        except Exception:
            self._failed()
        finally:
            # Whoever keeps the loop busy leaves it to others for as long, and has more to send at once then.
            self._sending = loop.call_later(rest, self._go_on, loop) if rest else None

    def _failed(self) -> None:
        """Something could not be sent to all: whoever is live is told, or would wait for what comes next forever."""
        logger.exception("Messages of the stream %r could not be sent.", self.name)
        if self.position is not None:
            self.move(self.position)

    def _next(self) -> list[Numbered | Transient]:
        """Take what goes out together."""
        items = [self._outgoing.popleft()]
        size = size_of(items[0])
        while self._outgoing and len(items) < MAX_BATCH:
            size += size_of(self._outgoing[0])
            if size > MAX_BATCH_SIZE:
                break
            items.append(self._outgoing.popleft())
        return items

    def send_presence(self, message: str) -> None:
        """Send a join or leave to every reader that presence is for."""
        for group in self.groups.values():
            frame = group.form(messages.presence_event(group.identifier, message))
            for reader in group.readers:
                if reader.presence and reader.announced:
                    reader.outbox.push(frame)

    def learn(self, position: StreamPosition) -> None:
        """The stream, which had no epoch, has one: whoever stood at its beginning does so still."""
        former, self.position = self.position, position
        for group in self.groups.values():
            for reader in group.readers:
                if reader.position is former:
                    reader.position = position

    def move(self, position: StreamPosition) -> None:
        """Start over at another position: live readers have lost something, and are told."""
        self.position = position
        self._outgoing.clear()
        if self.ear is not None:
            self.ear.lost()
        for group in self.groups.values():
            for reader in list(group.readers):
                if reader.live:
                    reader.position = position
                    reader.lost()
