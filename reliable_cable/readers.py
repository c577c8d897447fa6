"""Fan-out: stream -> identifier -> readers, with one encode per stream and identifier.

A reader is *live* when it stands where the hub stands in its stream: it gets what the hub delivers, as the hub delivers
it. Otherwise it is *behind*.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from .outbox import Outbox
from .protocol import messages
from .protocol.frames import Frame
from .protocol.positions import StreamPosition
from .protocol.recovery import StreamEntry, Verdict, judge
from .streams.base import Published, Transient

#: Readers who are sent something in one turn of the event loop, at most; and bytes that count as one more reader.
SLICE = 250
SLICE_UNIT = 8 * 1024

#: Messages that go out in one write, at most, and characters of their payloads unless it is one.
MAX_BATCH = 100
MAX_BATCH_SIZE = 32 * 1024

#: Seconds that a stream rests after sending something took as long; shorter ones are none.
REST_LEAST = 0.002
REST_MOST = 0.02

#: Characters of announced messages that are kept while those before them are read.
MAX_EARLY = 4 * 1024 * 1024

#: Of a group: the identifier, the stream's name as its clients know it, and the form in which they take frames.
GroupKey = tuple[str, str | None, type[Frame]]

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
    """

    __slots__ = (
        "announced",
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
    ) -> None:
        self.outbox = outbox
        self.identifier = identifier
        self.stream_id = stream_id
        self.sids = sids
        self.lost = lost
        self.presence = presence
        #: Whether the client knows the subscription, so that presence events make sense to it.
        self.announced = False
        self.live = False
        #: Whispers and transient messages that came during a replay.
        self.held: list[str] = []
        self.stream: HubStream | None = None
        self.position = StreamPosition("", 0)


class Group:
    """The readers for whom a message of a stream is the same frame."""

    __slots__ = ("_encode", "_epoch", "form", "identifier", "readers", "stream_id")

    def __init__(self, identifier: str, stream_id: str | None, form: type[Frame] = Frame) -> None:
        self.identifier = identifier
        self.stream_id = stream_id
        self.form = form
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
        return self.form(self._encode(offset, data))

    def transmission(self, data: str) -> Frame:
        """Return a message without a position as a frame."""
        return self.form(messages.transmission(self.identifier, data))

    def pack(self, batch: Batch) -> Parcel:
        """Return messages as the frames that each reader of the group is sent."""
        frames = [
            self.encode(item.position.epoch, item.entry.offset, item.entry.data)
            if isinstance(item, Numbered)
            else self.transmission(item.data)
            for item in batch.items
        ]
        return Parcel(batch, frames)


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


class Batch:
    """Messages of a stream that follow one another.

    Args:
        items: at least one.
    """

    __slots__ = ("excluded", "former", "items", "position")

    def __init__(self, items: Sequence[Numbered | Transient]) -> None:
        numbered = [item for item in items if isinstance(item, Numbered)]
        self.items = items
        #: Where readers stand before and behind it; None if nothing in it has a position.
        self.former = numbered[0].former if numbered else None
        self.position = numbered[-1].position if numbered else None
        #: Sessions that are not sent all of it.
        self.excluded = frozenset(
            exclude for item in items if (exclude := (item.entry if isinstance(item, Numbered) else item).exclude)
        )


class Parcel:
    """A batch as the readers of one group are sent it.

    Args:
        batch: the messages.
        frames: each of them as a frame.
    """

    __slots__ = ("_batch", "_block", "_frames", "weight")

    def __init__(self, batch: Batch, frames: Sequence[Frame]) -> None:
        self._batch = batch
        self._frames = frames
        #: What is written at once.
        self._block = frames[0].wire if len(frames) == 1 else b"".join([frame.wire for frame in frames])
        #: What a reader counts of a slice.
        self.weight = _weight(len(self._block))

    def send(self, readers: Iterable[Reader]) -> None:
        """Send all of it to those readers who live where it comes next, and to the others what is for them."""
        former, position, some = self._batch.former, self._batch.position, self._batch.excluded
        numbered = position is not None
        block = self._block
        for reader in readers:
            # Whoever came to live meanwhile stands elsewhere, and was sent the first of it from the store.
            if not reader.live or (reader.position is not former and numbered) or (some and _among(reader.sids, some)):
                self._send_singly(reader)
                continue
            if position is not None:
                reader.position = position
            write = reader.outbox.ready
            if write is None:
                for frame in self._frames:
                    reader.outbox.push(frame)
                continue
            try:
                write(block)
            except Exception:
                reader.outbox.failed()

    def _send_singly(self, reader: Reader) -> None:
        for item, frame in zip(self._batch.items, self._frames, strict=True):
            if isinstance(item, Numbered):
                if not reader.live or reader.position is not item.former:
                    continue
                reader.position = item.position
                if not (item.entry.exclude and item.entry.exclude in reader.sids):
                    reader.outbox.push(frame)
            elif reader.announced and not (item.exclude and item.exclude in reader.sids):
                if reader.live:
                    reader.outbox.push(frame)
                elif len(reader.held) < MAX_HELD:
                    reader.held.append(frame)  # for after the replay that it is in


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
        self.groups: dict[GroupKey, Group] = {}
        self.ear: Ear | None = None
        self.uses = 0
        self.opening: asyncio.Task[None] | None = None
        self.repair: asyncio.Task[None] | None = None
        self.again = False
        #: Announced messages that came before the ones that are being read.
        self._early: list[Published] = []
        self._early_size = 0
        self._outgoing: deque[Numbered | Transient] = deque()
        #: What goes on with it: after this turn of the event loop, or in those that follow.
        self._sending: asyncio.Handle | asyncio.Task[None] | None = None

    def group(self, reader: Reader) -> Group:
        """Return the group that a reader belongs to."""
        key = _group_key(reader)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(*key)
        return group

    def drop(self, reader: Reader) -> None:
        """Take a reader out of its group, which goes with its last one."""
        group = self.group(reader)
        group.readers.pop(reader, None)
        if not group.readers:
            del self.groups[_group_key(reader)]

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
        loop = asyncio.get_running_loop()
        if self._sending is not None:
            self._outgoing.append(item)
        elif self.uses * _weight(_size(item)) <= SLICE:
            batch = Batch([item])
            for group in self.groups.values():
                group.pack(batch).send(group.readers)
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
        finally:
            # Whoever keeps the loop busy leaves it to others for as long, and has more to send at once then.
            self._sending = loop.call_later(rest, self._go_on, loop) if rest else None

    def _next(self) -> list[Numbered | Transient]:
        """Take what goes out together."""
        items = [self._outgoing.popleft()]
        size = _size(items[0])
        while self._outgoing and len(items) < MAX_BATCH:
            size += _size(self._outgoing[0])
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


def _group_key(reader: Reader) -> GroupKey:
    return reader.identifier, reader.stream_id, reader.outbox.form


def _size(item: Numbered | Transient) -> int:
    return len(item.entry.data if isinstance(item, Numbered) else item.data)


def _weight(size: int) -> int:
    return 1 + size // SLICE_UNIT


def _among(sids: Collection[str], some: frozenset[str]) -> bool:
    return not some.isdisjoint(sids)
