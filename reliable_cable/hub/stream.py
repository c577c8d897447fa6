"""`HubStream`, a stream that is open in a hub, with its position, its subscribers and its queued messages.

Messages that arrive in the same iteration of the event loop are written together. If a stream has many subscribers, the
writes are spread over several iterations.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Protocol

from reliable_cable.logs import logger
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry, Verdict, judge
from reliable_cable.stores.streams.base import NOWHERE, Published, Transient

from . import fanout
from .subscriber import GroupKey, Subscriber, SubscriberGroup, SubscriberState, group_key

#: The maximum number of former epochs that a stream remembers.
MAX_FORMER_EPOCHS: Final = 8

#: The maximum total size, in characters, of the messages that are queued for the subscribers of a stream. If it is
#: exceeded, the queued messages are dropped, and live subscribers read the stored messages from the store.
MAX_QUEUED: Final = 8 * 2**20

#: The maximum total size, in characters, of early messages. A stream keeps them while the messages before them are
#: being read.
MAX_EARLY: Final = 4 * 1024 * 1024

#: The cursor of a subscriber that has lost messages. No stream has the epoch of this cursor. So a read after the cursor
#: finds a loss.
LOST: Final = StreamPosition("lost", 0)


class StreamObserver(Protocol):
    """Receives the messages of a stream inside this process. The control bus is the only observer."""

    def receive(self, data: str) -> None:
        """Handle a stored message."""

    def messages_lost(self) -> None:
        """Handle a loss of messages."""


@dataclass(slots=True, eq=False, repr=False)
class HubStream:
    """A stream that is open in an event loop.

    The stream *takes* a stored message: it moves its position to the message and delivers it to the live subscribers.
    Each message that is taken gets a *serial*, the next integer. Unlike an offset, a serial is never used again, even
    if the stream has a new epoch. So a single integer describes the progress of a live subscriber.

    Args:
        name: the name of the stream.
    """

    name: str
    #: The position of the last message that was taken. When the stream is opened, the position is read from the store.
    position: StreamPosition = NOWHERE
    #: The lineage of the store's data when `position` was read; `""` if it is unknown. A new lineage begins when the
    #: store may have lost data.
    lineage: str = ""
    #: The serial of the last stored message that was taken.
    serial: int = 0
    #: The epochs that have ended while the stream was open, in the order in which they ended.
    former_epochs: tuple[str, ...] = ()
    groups: dict[GroupKey, SubscriberGroup] = field(default_factory=dict)
    observer: StreamObserver | None = None
    #: The number of users that need the stream to be open, such as subscribers and the observer.
    users: int = 0
    #: A future that is done when the opening of the stream has ended. It has the error if the opening failed. None if
    #: the stream is open.
    opening: asyncio.Future[None] | None = None
    repair: asyncio.Task[None] | None = None
    #: Whether the repair must read the store once more.
    repair_again: bool = False
    #: The early messages, which were announced although messages before them are missing.
    _early: list[Published | Transient] = field(default_factory=list)
    _early_size: int = 0
    #: The messages that will be written in the next batches.
    _queue: deque[Entry | Transient] = field(default_factory=deque)
    _queue_size: int = 0
    #: The serial of the last stored message that was removed from the queue.
    _fanned_out: int = 0
    #: The callback or task that writes the next queued messages; None if a new message can be written immediately.
    _sending: asyncio.Handle | asyncio.Task[None] | None = None

    # -- subscribers ------------------------------------------------------------------------------------------------

    def group(self, subscriber: Subscriber) -> SubscriberGroup:
        """Return the group that a subscriber belongs to."""
        key = group_key(subscriber)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = SubscriberGroup(*key)
        return group

    def add(self, subscriber: Subscriber) -> None:
        """Add a subscriber, which catches up from the stream's current position."""
        subscriber.catch_up_from(self.position)
        self.group(subscriber).subscribers[subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        """Close a subscriber and remove it."""
        subscriber.close()
        group = self.group(subscriber)
        group.subscribers.pop(subscriber, None)
        if not group.subscribers:
            del self.groups[group_key(subscriber)]

    def go_live(self, subscriber: Subscriber) -> None:
        """Mark a subscriber that has caught up as live, so that it receives each new message."""
        subscriber.go_live(self.serial)

    def stop_live(self, subscriber: Subscriber) -> None:
        """Stop live delivery to a subscriber. It then catches up from the last message that it received."""
        if subscriber.state is SubscriberState.LIVE:
            subscriber.catch_up_from(self.position_of(subscriber))

    def position_of(self, subscriber: Subscriber) -> StreamPosition:
        """Return the position of the last message that was written to a subscriber."""
        if subscriber.state is not SubscriberState.LIVE:
            return subscriber.cursor
        # Some messages that the stream has taken may still be queued.
        missing = self.serial - subscriber.at
        return StreamPosition(self.position.epoch, self.position.offset - missing)

    # -- messages ---------------------------------------------------------------------------------------------------

    def take(self, entry: Entry, epoch: str) -> None:
        """Take the next stored message, and send it to all live subscribers."""
        self.position = StreamPosition(epoch, entry.offset)
        self.serial += 1
        if self.observer is not None:
            self.observer.receive(entry.data)
        self._send(entry)

    def keep_early(self, event: Published | Transient) -> None:
        """Keep a message until the messages before it have been read. Drop it if `MAX_EARLY` would be exceeded."""
        size = len(event.entry.data if isinstance(event, Published) else event.data)
        if self._early_size + size <= MAX_EARLY:
            self._early.append(event)
            self._early_size += size + 1

    def take_early(self) -> None:
        """Take the early messages that directly follow the position. Send the transient messages between them."""
        early, self._early, self._early_size = self._early, [], 0
        for event in early:
            if isinstance(event, Transient):
                self.send_transient(event)
                continue
            verdict = judge(self.position, event.epoch, event.entry.offset)
            if verdict is Verdict.NEXT:
                self.take(event.entry, event.epoch)
            elif verdict is Verdict.GAP:
                self.keep_early(event)

    @property
    def has_early(self) -> bool:
        """Whether there are early messages."""
        return bool(self._early)

    def drop_early(self) -> None:
        """Drop the early stored messages, because they were read or lost. Send the early transient messages."""
        early, self._early, self._early_size = self._early, [], 0
        for event in early:
            if isinstance(event, Transient):
                self._send(event)

    def send_transient(self, event: Transient) -> None:
        """Send a transient message to all subscribers, after the messages that have arrived before it."""
        if self.has_early:
            self.keep_early(event)
        else:
            self._send(event)

    def send_presence(self, message: str) -> None:
        """Send a join or leave event to all subscribers that receive presence events."""
        for group in self.groups.values():
            frame = group.encode_presence(message)
            for subscriber in group.subscribers:
                if subscriber.presence and subscriber.confirmed:
                    subscriber.outbox.push(frame)

    # -- epochs and losses ------------------------------------------------------------------------------------------

    def begin_epoch(self, position: StreamPosition) -> None:
        """Set the epoch of a stream that has had no messages. No messages are lost."""
        former, self.position = self.position, position
        for group in self.groups.values():
            for subscriber in group.subscribers:
                if subscriber.state is SubscriberState.CATCHING_UP and subscriber.cursor == former:
                    subscriber.cursor = position

    def start_over(self, position: StreamPosition) -> None:
        """Continue at a position after a loss of messages. Report the loss to the observer and all live subscribers."""
        if self.position.epoch not in ("", position.epoch):
            self.former_epochs = (*self.former_epochs, self.position.epoch)[-MAX_FORMER_EPOCHS:]
        self.position = position
        self.serial += 1
        # Live subscribers get the new serial. So if a batch is still being written, its stored messages are not sent to
        # them.
        self._clear_queue()
        live = self._live()
        for subscriber in live:
            subscriber.at = self.serial
        if self.observer is not None:
            self.observer.messages_lost()
        for subscriber in live:
            if subscriber.state is SubscriberState.LIVE:
                subscriber.owner.messages_lost()

    def lose_beginning(self, position: StreamPosition) -> None:
        """Set the position of a stream that has had no messages, and report a possible loss to all its subscribers."""
        for group in self.groups.values():
            for subscriber in group.subscribers:
                if subscriber.state is SubscriberState.CATCHING_UP and subscriber.cursor == self.position:
                    subscriber.cursor = LOST
        self.start_over(position)

    def _live(self) -> list[Subscriber]:
        return [
            subscriber
            for group in self.groups.values()
            for subscriber in group.subscribers
            if subscriber.state is SubscriberState.LIVE
        ]

    # -- writing ----------------------------------------------------------------------------------------------------

    def _send(self, item: Entry | Transient) -> None:
        loop = asyncio.get_running_loop()
        self._queue.append(item)
        self._queue_size += len(item.data)
        if self._queue_size > MAX_QUEUED and len(self._queue) > 1:
            self._skip_queue()
            return
        if self._sending is not None:
            return
        if self.users * fanout.POLICY.cost(len(item.data)) > fanout.POLICY.budget:
            self._continue(loop)
            return
        try:
            batch = self._next_batch()
            for group in self.groups.values():
                fanout.EncodedBatch(batch, group).send(group.subscribers)
        except Exception:
            self._failed()
        # Messages that arrive in the rest of this iteration of the event loop are written together.
        self._sending = loop.call_soon(self._continue, loop)

    def _continue(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sending = loop.create_task(self._send_queued()) if self._queue else None

    async def _send_queued(self) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.0
        try:
            budget = fanout.POLICY.budget
            while self._queue and not pause:
                started = loop.time()
                batch = self._next_batch()
                for group in list(self.groups.values()):
                    encoded = fanout.EncodedBatch(batch, group)
                    subscribers = list(group.subscribers)
                    while subscribers:
                        some = subscribers[: max(1, budget // encoded.cost)]
                        encoded.send(some)
                        del subscribers[: len(some)]
                        budget -= len(some) * encoded.cost
                        if budget <= 0:
                            await asyncio.sleep(0)
                            budget = fanout.POLICY.budget
                pause = fanout.POLICY.pause(loop.time() - started, len(self._queue))
        except Exception:
            self._failed()
        finally:
            self._sending = loop.call_later(pause, self._continue, loop) if pause else None

    def _next_batch(self) -> fanout.Batch:
        """Remove the messages of the next batch from the queue, and return the batch."""
        items = [self._queue.popleft()]
        size = len(items[0].data)
        self._queue_size -= size
        while self._queue and len(items) < fanout.POLICY.batch_messages:
            length = len(self._queue[0].data)
            size += length
            if size > fanout.POLICY.batch_size:
                break
            items.append(self._queue.popleft())
            self._queue_size -= length
        batch = fanout.Batch(items, self._fanned_out + 1, self.position.epoch)
        self._fanned_out = batch.last
        return batch

    def _skip_queue(self) -> None:
        """Drop the queued messages. Live subscribers read the stored messages from the store, each at its own rate."""
        logger.warning("The messages of the stream %r arrive faster than they can be sent.", self.name)
        live = self._live()
        positions = [self.position_of(subscriber) for subscriber in live]
        self._clear_queue()
        for subscriber, position in zip(live, positions, strict=True):
            subscriber.fall_behind(position)

    def _clear_queue(self) -> None:
        self._queue.clear()
        self._queue_size = 0
        self._fanned_out = self.serial

    def _failed(self) -> None:
        """Report a loss to all live subscribers, because a message may not have been sent to some of them."""
        logger.exception("Messages of the stream %r could not be sent.", self.name)
        self.start_over(self.position)
