"""Fan-out: stream -> identifier -> readers, with one encode per stream and identifier.

A reader is *live* when it stands where the hub stands in its stream: it gets what the hub delivers, as the hub delivers
it. Otherwise it is *behind*.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reliable_cable.connection.outbox import Outbox
from reliable_cable.protocol import messages
from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.streams.base import Transient

if TYPE_CHECKING:
    from .stream import HubStream

#: Bytes written to a reader for which it counts as one more.
UNIT = 8 * 1024

#: Bytes that are written at once, unless it is one message.
MAX_BLOCK = 128 * 1024

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
        behind: called when its connection takes no more for now, to let it catch up later; None: that is dropped.
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

    def fall_behind(self) -> None:
        """Be live no more, where it stands: its connection takes no more for now."""
        self.live = False
        if self.behind is not None:
            self.behind()

    def hold(self, frame: Frame) -> None:
        """Keep a message without a position until the reader is live, within bounds."""
        # One that was removed meanwhile would never let it go.
        if self.stream is not None and len(self.held) < MAX_HELD and self.outbox.can_hold(len(frame)):
            self.held.append(frame)
            self.outbox.held += len(frame)

    def let_go(self) -> list[str]:
        """Return what was held, and hold it no more."""
        held, self.held = self.held, []
        self.outbox.held -= sum(map(len, held))
        return held


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

    entry: Entry
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
        #: What is written at once; None: it would be too much for who may be slow.
        block = b"".join([frame.wire for frame in frames])
        self._block = block if len(frames) == 1 or len(block) <= MAX_BLOCK else None
        #: What a reader counts of a slice.
        self.weight = weigh(sum(map(len, frames)))

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
            write = reader.outbox.ready
            if write is None or block is None:
                self._send_singly(reader)  # a full socket may take only some of it
                continue
            if position is not None:
                reader.position = position
            try:
                write(block)
            except Exception:
                reader.outbox.failed()

    def _send_singly(self, reader: Reader) -> None:
        for item, frame in zip(self._batch.items, self._frames, strict=True):
            if isinstance(item, Numbered):
                if not reader.live or reader.position is not item.former:
                    continue
                if item.entry.exclude in reader.sids or reader.outbox.push(frame, kept=reader.behind is not None):
                    reader.position = item.position
                else:
                    reader.fall_behind()
            elif reader.announced and not (item.exclude and item.exclude in reader.sids):
                if reader.live:
                    reader.outbox.push(frame)
                else:
                    reader.hold(frame)


def size_of(item: Numbered | Transient) -> int:
    """Return how many characters a message has."""
    return len(item.entry.data if isinstance(item, Numbered) else item.data)


def weigh(size: int) -> int:
    """Return for how many readers one counts to whom so much is written."""
    return 1 + size // UNIT


def _among(sids: Collection[str], some: frozenset[str]) -> bool:
    return not some.isdisjoint(sids)


def group_key(reader: Reader) -> GroupKey:
    """Return what tells a reader's group from others of its stream."""
    return reader.identifier, reader.stream_id, reader.outbox.form
