"""The records of a storm: broadcasts, deliveries to clients, and losses of stores."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

Position = tuple[str, int]

#: The longest time, in seconds, from a commit until its broadcasts have their positions.
NUMBERING = 1.0


class Result(Enum):
    """The result of a broadcast, as far as its caller knows it in the end."""

    #: The call returned the position of the message.
    STORED = "stored"
    #: The transaction was committed. The caller does not know the position.
    COMMITTED = "committed"
    #: The call raised `BroadcastError`, or the transaction was rolled back. The message must not be stored.
    REFUSED = "refused"
    #: The result of an attempt is unknown. A broadcast with a position was repeated until a call returned the position.
    #: A broadcast without a position was not repeated, and may be stored once.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Sent:
    """A broadcast, and what its caller knows about it.

    Args:
        stream: the name of the stream.
        id: the id of the message, used only once.
        begun: the time of the first call, by the storm's clock.
        position: (epoch, offset), if it is known.
        result: what the caller knows about the result.
        ended: the time at which the call, or the last of its repeats, returned.
    """

    stream: str
    id: str
    begun: float
    position: Position | None
    result: Result = Result.STORED
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that a client received."""

    epoch: str
    offset: int
    id: str
    at: float


@dataclass(frozen=True, slots=True)
class Signal:
    """A notice to a client that it has missed messages which cannot be replayed (`history_not_found`)."""

    at: float


@dataclass(frozen=True, slots=True)
class Connected:
    """An event that is recorded when a client has connected, for the first time or again."""

    at: float


Event = Delivery | Signal | Connected
Log = Sequence[Event]


@dataclass(frozen=True, slots=True)
class Loss:
    """A fault after which a store may lack its newest messages.

    Args:
        at: the time at which the fault began.
        noticed: the latest time at which the store notices the loss. Until then, a store that cannot know of the loss
            may assign positions a second time. For a store that notices the loss at once, this is `at`.
    """

    at: float
    noticed: float


class Truth:
    """The broadcasts to one stream.

    Args:
        stream: the name of the stream.
        sent: the broadcasts to all streams. The first and the last ones were made without faults.
        losses: the faults that may have lost messages of this stream. Without any, its history cannot be lost.
        history_size: how many messages the history holds for clients that reconnect; None: all.
    """

    def __init__(
        self, stream: str, sent: Iterable[Sent], losses: Iterable[Loss] = (), history_size: int | None = None
    ) -> None:
        self.stream = stream
        self.losses = sorted(losses, key=lambda loss: loss.at)
        self.history_size = history_size
        self.sent = sorted((one for one in sent if one.stream == stream), key=lambda one: one.begun)
        stored = [one for one in self.sent if one.position is not None]
        if not stored:
            raise ValueError(f"nothing was stored in {stream!r}")
        self.first_epoch = epoch_of(stored[0])
        self.last_epoch = epoch_of(stored[-1])
        #: The time at which the first broadcast of each epoch ended, by epoch. The epochs are in this order.
        self.births: dict[str, float] = {}
        #: The greatest known offset in each epoch.
        self.tails: dict[str, int] = {}
        for one in sorted(stored, key=lambda one: one.ended):
            self.births.setdefault(epoch_of(one), one.ended)
            self.tails[epoch_of(one)] = max(self.tails.get(epoch_of(one), 0), offset_of(one))

    @property
    def durable(self) -> bool:
        """Whether the history of the stream cannot have been lost."""
        return not self.losses

    @property
    def end(self) -> Position:
        """The newest known position."""
        return self.last_epoch, self.tails[self.last_epoch]

    def reached(self, position: Position) -> bool:
        """Return whether a position is the newest known one, or a later one that no broadcaster knows."""
        return position[0] == self.last_epoch and position[1] >= self.end[1]

    def needless_epochs(self) -> list[str]:
        """Return the epochs that began although no data had been lost since the previous epoch."""
        return [
            epoch
            for number, (epoch, birth) in enumerate(self.births.items())
            if number > sum(loss.at <= birth for loss in self.losses)
        ]

    def may_be_renumbered(self, position: Position, ids: Collection[str]) -> bool:
        """Return whether the messages with these ids may all have been stored at this position.

        Some stores cannot notice that they were restored from a backup. Such a store may assign positions a second
        time, until a server notices this and a new epoch begins.
        """
        given = [one for one in self.sent if one.id in ids]
        return position[0] != self.last_epoch and all(
            any(loss.at < loss.noticed and one.begun <= loss.noticed and one.ended >= loss.at for loss in self.losses)
            for one in given[1:]
        )

    def may_be_in(self, one: Sent, epochs: Iterable[str]) -> bool:
        """Return whether a broadcast may be stored in several epochs.

        The first attempt may have stored it in a former epoch that was lost afterwards, so that the next attempt stored
        it again. In this case, the call must have begun before the last of the epochs. A committed broadcast that was
        waiting for its position when data were lost may get one position before the loss and one after it.
        """
        if one.position is None:
            return any(one.begun <= loss.noticed and one.ended + NUMBERING >= loss.at for loss in self.losses)
        order = list(self.births)
        later = order[order.index(epoch_of(one)) + 1 :]
        known_before = [other for other in self.sent if other.position and epoch_of(other) == epoch_of(one)]
        return not set(epochs).intersection(later) and all(other.ended >= one.begun for other in known_before)

    def exceeded(self, begin: float, end: float) -> bool:
        """Return whether more messages than the history holds may have been stored between two times."""
        stored = sum(one.result is not Result.REFUSED and one.begun <= end and one.ended > begin for one in self.sent)
        return self.history_size is not None and stored > self.history_size

    def begun_after(self, time: float, epoch: str, offsets: range) -> list[int]:
        """Return those of the given offsets in an epoch whose messages were broadcast after a time.

        An offset that was given to several messages (see `may_be_renumbered`) counts as that of the first one.
        """
        first: dict[int, float] = {}
        for one in self.sent:
            if one.position is not None and epoch_of(one) == epoch and offset_of(one) in offsets:
                first.setdefault(offset_of(one), one.begun)
        return [offset for offset, begun in first.items() if begun > time]

    def is_in_doubt(self, time: float) -> bool:
        """Return whether a loss had happened at a time, and the store may not have noticed it by then.

        A client that has newer messages than the store is then told of a loss, although the epoch may go on: the store
        cannot notice the loss if it has as many messages again before a server looks at it.
        """
        return any(loss.at <= time <= loss.noticed for loss in self.losses if loss.at < loss.noticed)


def epoch_of(one: Sent) -> str:
    """Return the epoch of a broadcast whose position is known."""
    assert one.position is not None
    return one.position[0]


def offset_of(one: Sent) -> int:
    """Return the offset of a broadcast whose position is known."""
    assert one.position is not None
    return one.position[1]
