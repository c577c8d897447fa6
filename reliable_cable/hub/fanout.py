"""Fan-out: writes messages of a stream to the subscribers of a group, encoded once for the group.

See Architecture: Fan-out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, cast

from reliable_cable.protocol.frames import Frame
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.streams.base import Transient

from .subscriber import NOT_LIVE, Subscriber, SubscriberGroup


@dataclass(frozen=True, slots=True)
class FanoutPolicy:
    """Limits how much is written at once, so that other tasks of the event loop can run in between.

    Attributes:
        budget: how much may be written in one iteration of the event loop. A write costs 1, and 1 more for each
            `unit` bytes.
        unit: the number of bytes that cost as much as one more write.
        batch_messages: the maximum number of messages in one write.
        batch_size: the maximum number of characters of payload in one write, unless it is one message.
        block_size: the maximum number of bytes in one write, unless it is one message. Longer batches are written
            message by message, since a client may be too slow for all of them.
        shortest_pause: the shortest pause, in seconds, that is worth a timer.
        longest_pause: the longest pause, in seconds, of a stream that kept the event loop busy.
    """

    budget: int = 250
    unit: int = 8 * 1024
    batch_messages: int = 100
    batch_size: int = 32 * 1024
    block_size: int = 128 * 1024
    shortest_pause: float = 0.002
    longest_pause: float = 0.02

    def cost(self, size: int) -> int:
        """Return how much of the budget one write of `size` bytes costs."""
        return 1 + size // self.unit

    def pause(self, duration: float, queued: int) -> float:
        """Return how long, in seconds, a stream pauses after a batch.

        A stream that has kept the event loop busy pauses for the same time, so that other tasks can run. The messages
        that arrive meanwhile are written together.

        Args:
            duration: how long, in seconds, the batch took.
            queued: the number of messages that are queued.
        """
        if duration < self.shortest_pause or queued >= self.batch_messages:
            return 0.0
        return min(duration, self.longest_pause)


POLICY = FanoutPolicy()

#: Stands for the serial of a message without a position. It differs from every value of `Subscriber.at`.
_TRANSIENT: Final = -2


class Batch:
    """Successive messages of a stream, stored ones and transient ones.

    Args:
        items: the messages, at least one.
        first: the serial of the first stored message. The other stored messages have the serials after it.
        epoch: the epoch of the stored messages.
    """

    __slots__ = ("epoch", "excluded", "first", "items", "last")

    def __init__(self, items: Sequence[Entry | Transient], first: int, epoch: str) -> None:
        self.items = items
        self.first = first
        #: The serial of the last stored message; `first - 1` if there is none.
        self.last = first - 1 + sum(isinstance(item, Entry) for item in items)
        self.epoch = epoch
        #: The session ids that are excluded from some of the messages.
        self.excluded = frozenset(item.exclude for item in items if item.exclude)


class EncodedBatch:
    """A batch as it is written to the subscribers of one group, encoded as frames for them.

    Args:
        batch: the messages.
        group: the group.
    """

    __slots__ = ("_batch", "_block", "_frames", "_singly", "cost")

    def __init__(self, batch: Batch, group: SubscriberGroup) -> None:
        self._batch = batch
        frames = [
            group.encode(batch.epoch, item.offset, item.data)
            if isinstance(item, Entry)
            else group.encode_transient(item.data)
            for item in batch.items
        ]
        #: The frame of each message.
        self._frames: Sequence[Frame] = frames
        #: The messages one by one. Most batches are written whole, so the list is made only when a subscriber needs it.
        self._singly: Sequence[tuple[int, Entry | Transient, Frame]] = ()
        #: All frames in one piece; None if that is too long for one write, or if each client gets bytes of its own.
        self._block: bytes | None = None
        #: How much of the fan-out budget one subscriber costs.
        self.cost: int
        if frames[0].added:
            self.cost = sum(POLICY.cost(len(frame) + frame.added) for frame in frames)
            return
        self.cost = POLICY.cost(sum(map(len, frames)))
        block = b"".join([frame.wire for frame in frames])
        if len(frames) == 1 or len(block) <= POLICY.block_size:
            self._block = block

    def send(self, subscribers: Iterable[Subscriber]) -> None:
        """Write the batch to each subscriber that needs all of it. Write to the others the messages that they need."""
        before, last, excluded = self._batch.first - 1, self._batch.last, self._batch.excluded
        has_kept = last > before
        block = self._block
        for subscriber in subscribers:
            at = subscriber.at
            # A subscriber that has just gone live may already have some of these messages from the store.
            if (at != before and (has_kept or at < 0)) or (excluded and not excluded.isdisjoint(subscriber.sids)):
                self._send_singly(subscriber)
                if not excluded.isdisjoint(subscriber.sids):
                    subscriber.outbox.send_positions()
                continue
            write = subscriber.outbox.ready
            if write is None or block is None:
                self._send_singly(subscriber)  # a full socket may accept only some of the messages
                continue
            subscriber.at = last if has_kept else at
            try:
                write(block)
            except Exception:
                subscriber.outbox.failed()

    def _send_singly(self, subscriber: Subscriber) -> None:
        for before, item, frame in self._singly or self._separate():
            if before == _TRANSIENT:
                self._send_transient(subscriber, cast(Transient, item), frame)
            elif subscriber.at == before:
                if item.exclude in subscriber.sids or subscriber.outbox.push(frame, droppable=True):
                    subscriber.at = before + 1
                elif isinstance(item, Entry):
                    subscriber.fall_behind(StreamPosition(self._batch.epoch, item.offset - 1))

    def _separate(self) -> Sequence[tuple[int, Entry | Transient, Frame]]:
        """Return each message with its frame and, for a stored one, the serial before its own."""
        serials = count(self._batch.first - 1)
        self._singly = [
            (next(serials) if isinstance(item, Entry) else _TRANSIENT, item, frame)
            for item, frame in zip(self._batch.items, self._frames, strict=True)
        ]
        return self._singly

    @staticmethod
    def _send_transient(subscriber: Subscriber, item: Transient, frame: Frame) -> None:
        if not subscriber.confirmed or (item.exclude and item.exclude in subscriber.sids):
            return
        if subscriber.at == NOT_LIVE:
            subscriber.hold(frame)
        else:
            subscriber.outbox.push(frame, droppable=item.whisper)
