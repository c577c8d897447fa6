"""What happened in a storm, as data: what was broadcast, what each client got, and when a store lost data."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

Position = tuple[str, int]

#: Seconds that pass at most from a commit until its broadcasts have their positions.
NUMBERING = 1.0


class Fate(Enum):
    """What the caller of a broadcast knows in the end."""

    STORED = "stored"  #: at the position that it got at once
    COMMITTED = "committed"  #: in a transaction: at some position
    REFUSED = "refused"  #: it raised `BroadcastError`, or was rolled back: nowhere
    #: A try's fate was unknown. With a position, it was repeated until that came; without one, it was not repeated, and
    #: is stored once or not at all.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Sent:
    """A broadcast, and what its caller knows.

    Args:
        stream: where to.
        id: of the message, used once.
        begun: when the call was first made, by the storm's clock.
        position: (epoch, offset), if it is known.
        fate: what is known.
        ended: when the call, or the last of its repeats, returned.
    """

    stream: str
    id: str
    begun: float
    position: Position | None
    fate: Fate = Fate.STORED
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that a client got."""

    epoch: str
    offset: int
    id: str
    at: float


@dataclass(frozen=True, slots=True)
class Signal:
    """A client was told that history is lost."""

    at: float


@dataclass(frozen=True, slots=True)
class Connected:
    """A client got a new connection: it was away before."""

    at: float


Event = Delivery | Signal | Connected
Log = Sequence[Event]


@dataclass(frozen=True, slots=True)
class Loss:
    """A fault after which a store may lack its newest messages.

    Args:
        at: when the first message was broadcast that may be lost.
        noticed: when the loss must have been noticed. Until then the store may give positions for a second time, if it
            cannot know better. In a store that notices at once this is `at`.
    """

    at: float
    noticed: float


class Truth:
    """What was broadcast to one stream.

    Args:
        stream: its name.
        sent: all broadcasts to it; the first and the last ones were made while there were no faults.
        losses: the faults that may have lost messages of this stream; without any, its history cannot be lost.
        history_size: how many messages a client that was away is offered; None: all.
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
        #: When the first broadcast to each epoch ended, in this order.
        self.births: dict[str, float] = {}
        #: The greatest offset that was given in each epoch, as far as broadcasters know.
        self.tails: dict[str, int] = {}
        for one in sorted(stored, key=lambda one: one.ended):
            self.births.setdefault(epoch_of(one), one.ended)
            self.tails[epoch_of(one)] = max(self.tails.get(epoch_of(one), 0), offset_of(one))

    @property
    def durable(self) -> bool:
        """Whether its history cannot have been lost."""
        return not self.losses

    @property
    def end(self) -> Position:
        """The position of the newest message, as far as broadcasters know."""
        return self.last_epoch, self.tails[self.last_epoch]

    def reached(self, position: Position) -> bool:
        """Whether that is the newest message; or a later one, whose position its caller does not know."""
        return position[0] == self.last_epoch and position[1] >= self.end[1]

    def needless_epochs(self) -> list[str]:
        """Return the epochs that began although no data had been lost since the epoch before."""
        return [
            epoch
            for number, (epoch, birth) in enumerate(self.births.items())
            if number > sum(loss.at <= birth for loss in self.losses)
        ]

    def may_be_renumbered(self, position: Position, ids: Collection[str]) -> bool:
        """Whether a position may be that of several messages.

        So it is while a store that cannot know that it went back has not been told so. Its epoch has then ended.
        """
        given = [one for one in self.sent if one.id in ids]
        return position[0] != self.last_epoch and all(
            any(loss.at < loss.noticed and one.begun <= loss.noticed and one.ended >= loss.at for loss in self.losses)
            for one in given[1:]
        )

    def may_be_in(self, one: Sent, epochs: Iterable[str]) -> bool:
        """Whether a broadcast may be stored in each of several epochs.

        A first try may have stored it in a former epoch, whose loss made the next try store it again. This needs a call
        that began before the last of the epochs. One that was committed, and waited for its position when data was
        lost, may get a position before the loss and after it.
        """
        if one.position is None:
            return any(one.begun <= loss.noticed and one.ended + NUMBERING >= loss.at for loss in self.losses)
        order = list(self.births)
        later = order[order.index(epoch_of(one)) + 1 :]
        known_before = [other for other in self.sent if other.position and epoch_of(other) == epoch_of(one)]
        return not set(epochs).intersection(later) and all(other.ended >= one.begun for other in known_before)

    def exceeded(self, begin: float, end: float) -> bool:
        """Say whether more messages than the history holds may have been stored between two times."""
        stored = sum(one.fate is not Fate.REFUSED and one.begun <= end and one.ended > begin for one in self.sent)
        return self.history_size is not None and stored > self.history_size

    def begun_after(self, time: float, epoch: str, offsets: range) -> list[int]:
        """Return those of an epoch's offsets whose messages were broadcast after a time."""
        return [
            offset_of(one)
            for one in self.sent
            if one.position is not None and epoch_of(one) == epoch and offset_of(one) in offsets and one.begun > time
        ]


def epoch_of(one: Sent) -> str:
    """Return the epoch of a broadcast whose position is known."""
    assert one.position is not None
    return one.position[0]


def offset_of(one: Sent) -> int:
    """Return the offset of a broadcast whose position is known."""
    assert one.position is not None
    return one.position[1]
