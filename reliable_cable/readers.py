"""Fan-out: stream -> identifier -> readers, with one encode per stream and identifier.

A reader is *live* when it stands where the hub stands in its stream: it gets what the hub delivers, as the hub delivers
it. Otherwise it is *behind*.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from .outbox import Outbox
from .protocol import messages
from .protocol.frames import Frame
from .protocol.positions import StreamPosition
from .protocol.recovery import StreamEntry, Verdict, judge
from .streams.base import Published, Transient

#: Readers who are sent a message in one turn of the event loop.
SLICE = 500

#: Characters of announced messages that are kept while those before them are read.
MAX_EARLY = 4 * 1024 * 1024

#: Messages without a position that are kept for a reader during its replay.
MAX_HELD = 100


class Reader:
    """One identifier of one connection on one stream.

    Args:
        outbox: of the connection.
        identifier: the subscription's.
        stream_id: the stream's name as this client knows it; None for a base client, which gets no positions.
        sids: the session ids by which a broadcast can exclude this connection.
        lost: called when messages to a live reader are missing for good.
        presence: whether the stream's joins and leaves are for this reader.
        behind: called when a live reader's connection takes no more for now: whoever has it called lets the reader
            catch up. None: such a connection is dropped.
    """

    __slots__ = (
        "announced",
        "behind",
        "held",
        "identifier",
        "live",
        "lost",
        "outbox",
        "position",
        "presence",
        "sids",
        "stream",
        "stream_id",
    )

    def __init__(
        self,
        outbox: Outbox,
        identifier: str,
        stream_id: str | None,
        sids: Collection[str],
        lost: Callable[[], None],
        *,
        presence: bool = False,
        behind: Callable[[], None] | None = None,
    ) -> None:
        self.outbox = outbox
        self.identifier = identifier
        self.stream_id = stream_id
        self.sids = sids
        self.lost = lost
        self.behind = behind
        self.presence = presence
        #: Whether the client knows the subscription, so that presence events make sense to it.
        self.announced = False
        self.live = False
        #: Whispers and transient messages that came during a replay.
        self.held: list[str] = []
        self.stream: HubStream | None = None
        self.position = StreamPosition("", 0)

    def fall_behind(self, position: StreamPosition) -> None:
        """Be live no more, but stand at `position`: the connection takes no more for now."""
        self.position, self.live = position, False
        if self.behind is not None:
            self.behind()

    def hold(self, frame: Frame) -> None:
        """Keep a message without a position until the reader is live, within bounds."""
        if len(self.held) < MAX_HELD and self.outbox.can_hold(len(frame)):
            self.held.append(frame)
            self.outbox.held += len(frame)

    def let_go(self) -> list[str]:
        """Return what was held, and hold it no more."""
        held, self.held = self.held, []
        self.outbox.held -= sum(map(len, held))
        return held


class Group:
    """The readers for whom a message of a stream is the same frame."""

    __slots__ = ("_encode", "_epoch", "identifier", "readers", "stream_id")

    def __init__(self, identifier: str, stream_id: str | None) -> None:
        self.identifier = identifier
        self.stream_id = stream_id
        self.readers: dict[Reader, None] = {}
        self._epoch = ""
        self._encode: Callable[[int, str], str] | None = None

    def encode(self, epoch: str, offset: int, data: str) -> Frame:
        """Return a numbered message as a frame."""
        if self.stream_id is None:
            return self.transmission(data)
        if self._encode is None or epoch != self._epoch:
            self._encode = messages.broadcast_encoder(self.identifier, self.stream_id, epoch)
            self._epoch = epoch
        return Frame(self._encode(offset, data))

    def transmission(self, data: str) -> Frame:
        """Return a message without a position as a frame."""
        return Frame(messages.transmission(self.identifier, data))

    def send_entry(self, readers: Iterable[Reader], item: Numbered) -> None:
        """Send a numbered message to those readers who live where it comes next."""
        entry, former, position = item.entry, item.former, item.position
        frame: Frame | None = None
        wire = b""
        for reader in readers:
            # Whoever came to live meanwhile stands elsewhere, and was sent it from the store.
            if not reader.live or reader.position is not former:
                continue
            reader.position = position
            if entry.exclude and entry.exclude in reader.sids:
                continue
            if frame is None:
                frame = self.encode(position.epoch, entry.offset, entry.data)
                wire = frame.wire
            write = reader.outbox.ready
            if write is None:
                if not reader.outbox.push(frame, kept=reader.behind is not None):
                    reader.fall_behind(former)
                continue
            try:
                write(wire)
            except Exception:
                reader.outbox.failed()

    def send_transient(self, readers: Iterable[Reader], event: Transient) -> None:
        """Send a message without a position: after the replay, to those who are in one."""
        frame: Frame | None = None
        for reader in readers:
            if not reader.announced or (event.exclude and event.exclude in reader.sids):
                continue
            frame = frame or self.transmission(event.data)
            if reader.live:
                reader.outbox.push(frame)
            else:
                reader.hold(frame)


@dataclass(frozen=True, slots=True)
class Numbered:
    """A numbered message on its way to the live readers.

    Args:
        entry: the message.
        former: where the readers stand who are to be sent it; this very object, which all of them share.
        position: where they stand then.
    """

    entry: StreamEntry
    former: StreamPosition | None
    position: StreamPosition


class Ear(Protocol):
    """Takes a stream's messages for this process, not for a client."""

    def hear(self, data: str) -> None:
        """Take a numbered message."""

    def lost(self) -> None:
        """Messages are missing for good."""


class HubStream:
    """A stream that has readers here, and how far the hub has delivered it.

    What is sent to many goes out in slices, between which the event loop turns to others.
    """

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
        self.groups: dict[tuple[str, str | None], Group] = {}
        self.ear: Ear | None = None
        self.uses = 0
        self.opening: asyncio.Task[None] | None = None
        self.repair: asyncio.Task[None] | None = None
        self.again = False
        #: Announced messages that came before the ones that are being read.
        self._early: list[Published] = []
        self._early_size = 0
        self._outgoing: deque[Numbered | Transient] = deque()
        self._sending: asyncio.Task[None] | None = None

    def group(self, reader: Reader) -> Group:
        """Return the group that a reader belongs to."""
        key = (reader.identifier, reader.stream_id)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(*key)
        return group

    def send(self, entry: StreamEntry, epoch: str) -> None:
        """Send a numbered message to every live reader; the hub then stands behind it."""
        former, self.position = self.position, StreamPosition(epoch, entry.offset)
        if self.ear is not None:
            self.ear.hear(entry.data)
        self._send(Numbered(entry, former, self.position))

    def keep_early(self, event: Published) -> None:
        """Keep a message for when those before it have been read; within bounds, since the store has it, too."""
        if self._early_size + len(event.data) <= MAX_EARLY:
            self._early.append(event)
            self._early_size += len(event.data) + 1

    def send_early(self) -> None:
        """Send what was kept and comes next."""
        early = self._early
        self.forget_early()
        for event in early:
            verdict = Verdict.REPEAT if self.position is None else judge(self.position, event.epoch, event.offset)
            if verdict is Verdict.NEXT:
                self.send(StreamEntry(event.offset, event.data, event.exclude), event.epoch)
            elif verdict is Verdict.GAP:
                self.keep_early(event)

    def forget_early(self) -> None:
        """Keep nothing any more: what was kept has been read, or lost."""
        self._early = []
        self._early_size = 0

    def send_transient(self, event: Transient) -> None:
        """Send a message without a position to every reader."""
        self._send(event)

    def _send(self, item: Numbered | Transient) -> None:
        if self._sending is None and self.uses <= SLICE:
            for group in self.groups.values():
                _send_to(group, group.readers, item)
            return
        self._outgoing.append(item)
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_outgoing())

    async def _send_outgoing(self) -> None:
        try:
            while self._outgoing:
                item = self._outgoing.popleft()
                for group in list(self.groups.values()):
                    readers = list(group.readers)
                    for start in range(0, len(readers), SLICE):
                        _send_to(group, readers[start : start + SLICE], item)
                        await asyncio.sleep(0)
        finally:
            self._sending = None

    def send_presence(self, message: str) -> None:
        """Send a join or leave to every reader that presence is for."""
        for group in self.groups.values():
            frame = Frame(messages.presence_event(group.identifier, message))
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


def _send_to(group: Group, readers: Iterable[Reader], item: Numbered | Transient) -> None:
    if isinstance(item, Numbered):
        group.send_entry(readers, item)
    else:
        group.send_transient(readers, item)
