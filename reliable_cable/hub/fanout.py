"""Fan-out, which writes the messages of a stream to many subscribers.

A message is encoded once for each group of subscribers. See Architecture: Fan-out.
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
    """The limits of the fan-out. They let other tasks of the event loop run between the writes.

    Attributes:
        budget: the maximum cost of the writes in one iteration of the event loop. A write costs 1, and 1 more for each
            `unit` characters.
        unit: the number of characters for which the cost of a write is increased by 1.
        batch_messages: the maximum number of messages in a batch.
        batch_size: the maximum size of the payloads in a batch, in characters. A batch with one message may be larger.
        block_size: the maximum size of a write, in bytes. A larger batch is written message by message, because a slow
            client may accept only some of its messages. A single message may be larger.
        shortest_pause: the minimum pause, in seconds. A shorter pause is skipped, because its timer costs too much.
        longest_pause: the maximum pause, in seconds, of a stream that has kept the event loop busy.
    """

    budget: int = 250
    unit: int = 8 * 1024
    batch_messages: int = 100
    batch_size: int = 32 * 1024
    block_size: int = 128 * 1024
    shortest_pause: float = 0.002
    longest_pause: float = 0.02

    def cost(self, size: int) -> int:
        """Return the cost of a write of `size` characters."""
        return 1 + size // self.unit

    def pause(self, duration: float, queued: int) -> float:
        """Return the pause of a stream after a batch, in seconds.

        A stream pauses for as long as its batch has kept the event loop busy, so that other tasks can run. The messages
        that arrive during the pause are written together. If a full batch is already queued, there is no pause.

        Args:
            duration: the time, in seconds, that the batch has taken.
            queued: the number of queued messages.
        """
        if duration < self.shortest_pause or queued >= self.batch_messages:
            return 0.0
        return min(duration, self.longest_pause)


POLICY = FanoutPolicy()

#: Used in place of a serial for transient messages, which have no serial. `Subscriber.at` never has this value.
_TRANSIENT: Final = -2


class Batch:
    """Successive messages of a stream, which may be stored or transient.

    Args:
        items: one or more messages.
        first: the serial of the first stored message (see `HubStream`). Each further stored message has the next
            serial.
        epoch: the epoch of the stored messages.
    """

    __slots__ = ("epoch", "excluded", "first", "items", "last")

    def __init__(self, items: Sequence[Entry | Transient], first: int, epoch: str) -> None:
        self.items = items
        self.first = first
        #: The serial of the last stored message; `first - 1` if no message is stored.
        self.last = first - 1 + sum(isinstance(item, Entry) for item in items)
        self.epoch = epoch
        #: The session ids that are excluded from one or more of the messages.
        self.excluded = frozenset(item.exclude for item in items if item.exclude)


class EncodedBatch:
    """A batch that is encoded as frames for the subscribers of a group."""

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
        #: The result of `_separate`. It is empty until a subscriber needs it, because most batches are written whole.
        self._singly: Sequence[tuple[int, Entry | Transient, Frame]] = ()
        #: The bytes of all frames together. None if they differ for each client, or if there are several frames that
        #: exceed `block_size` together.
        self._block: bytes | None = None
        #: The cost of writing the batch to a subscriber, as a part of the fan-out budget.
        self.cost: int
        if frames[0].added:
            self.cost = sum(POLICY.cost(len(frame) + frame.added) for frame in frames)
            return
        self.cost = POLICY.cost(sum(map(len, frames)))
        block = b"".join([frame.wire for frame in frames])
        if len(frames) == 1 or len(block) <= POLICY.block_size:
            self._block = block

    def send(self, subscribers: Iterable[Subscriber]) -> None:
        """Write the batch to subscribers. A subscriber that already has some of the messages gets only the rest."""
        before, last, excluded = self._batch.first - 1, self._batch.last, self._batch.excluded
        has_kept = last > before
        block = self._block
        for subscriber in subscribers:
            at = subscriber.at
            # A subscriber that has just become live may already have some of these messages from the store.
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
        """For each message of the batch, return the serial that precedes it, the message itself, and its frame.

        For a transient message, `_TRANSIENT` is returned in place of the serial.
        """
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
