"""Fan-out: stream -> identifier -> readers, with one encode per stream and identifier.

A reader is *live* when it stands where the hub stands in its stream: it gets what the hub delivers, as the hub delivers
it. Otherwise it is *behind*.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from .outbox import Outbox
from .protocol import messages
from .protocol.positions import StreamPosition
from .protocol.recovery import StreamEntry
from .streams.base import Transient

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
        sids: frozenset[str],
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

    __slots__ = ("_encode", "_epoch", "identifier", "readers", "stream_id")

    def __init__(self, identifier: str, stream_id: str | None) -> None:
        self.identifier = identifier
        self.stream_id = stream_id
        self.readers: dict[Reader, None] = {}
        self._epoch = ""
        self._encode: Callable[[int, str], str] | None = None

    def encode(self, epoch: str, offset: int, data: str) -> str:
        """Return a numbered message as a frame."""
        if self.stream_id is None:
            return messages.transmission(self.identifier, data)
        if self._encode is None or epoch != self._epoch:
            self._encode = messages.broadcast_encoder(self.identifier, self.stream_id, epoch)
            self._epoch = epoch
        return self._encode(offset, data)


class Ear(Protocol):
    """Takes a stream's messages for this process, not for a client."""

    def hear(self, data: str) -> None:
        """Take a numbered message."""

    def lost(self) -> None:
        """Messages are missing for good."""


class HubStream:
    """A stream that has readers here, and how far the hub has delivered it."""

    __slots__ = ("again", "ear", "groups", "name", "opening", "position", "repair", "uses")

    def __init__(self, name: str) -> None:
        self.name = name
        self.position: StreamPosition | None = None
        self.groups: dict[tuple[str, str | None], Group] = {}
        self.ear: Ear | None = None
        self.uses = 0
        self.opening: asyncio.Task[None] | None = None
        self.repair: asyncio.Task[None] | None = None
        self.again = False

    def group(self, reader: Reader) -> Group:
        """Return the group that a reader belongs to."""
        key = (reader.identifier, reader.stream_id)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(*key)
        return group

    def send(self, entry: StreamEntry, epoch: str) -> None:
        """Send a numbered message to every live reader; the hub then stands behind it."""
        self.position = StreamPosition(epoch, entry.offset)
        if self.ear is not None:
            self.ear.hear(entry.data)
        for group in self.groups.values():
            frame = ""
            for reader in group.readers:
                if not reader.live:
                    continue
                reader.position = self.position
                if entry.exclude and entry.exclude in reader.sids:
                    continue
                frame = frame or group.encode(epoch, entry.offset, entry.data)
                reader.outbox.push(frame)

    def send_transient(self, event: Transient) -> None:
        """Send a message without a position to every reader: after the replay, if there is one."""
        for group in self.groups.values():
            frame = ""
            for reader in group.readers:
                if not reader.announced or (event.exclude and event.exclude in reader.sids):
                    continue
                frame = frame or messages.transmission(group.identifier, event.data)
                if reader.live:
                    reader.outbox.push(frame)
                elif len(reader.held) < MAX_HELD:
                    reader.held.append(frame)

    def send_presence(self, message: str) -> None:
        """Send a join or leave to every reader that presence is for."""
        for group in self.groups.values():
            frame = messages.presence_event(group.identifier, message)
            for reader in group.readers:
                if reader.presence and reader.announced:
                    reader.outbox.push(frame)

    def move(self, position: StreamPosition) -> None:
        """Start over at another position: live readers have lost something, and are told."""
        self.position = position
        if self.ear is not None:
            self.ear.lost()
        for group in self.groups.values():
            for reader in list(group.readers):
                if reader.live:
                    reader.position = position
                    reader.lost()
