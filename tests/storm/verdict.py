"""What a storm's logs say, as pure functions: each promise that was broken is a `Finding`.

Of a stream whose history cannot be lost, every client must have exactly what was broadcast, from the first message on.
A stream that lives in Redis only may lose its history where Redis lost its data: then its epoch changes, and between
the last message of the former epoch and the first one of the new epoch a client must be told (`history_not_found`).
Within an epoch there is no gap, no repeat and no disorder, and nothing that was broadcast after the client was told may
be missing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

#: Kinds of findings.
LOST = "lost"
REPEATED = "repeated"
DISORDERED = "out of order"
UNSIGNALLED = "unsignalled"
NEEDLESS = "needless signal"
UNFOUNDED = "unfounded"
KINDS = (LOST, REPEATED, DISORDERED, UNSIGNALLED, NEEDLESS, UNFOUNDED)

Position = tuple[str, int]


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


Log = Sequence[Delivery | Signal]


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken promise.

    Args:
        kind: one of `KINDS`.
        where: the client and the stream.
        what: for a human.
        count: how many messages it is about.
    """

    kind: str
    where: str
    what: str
    count: int = 1


class Truth:
    """What was broadcast to one stream.

    Args:
        stream: its name.
        sent: all broadcasts to it; the first and the last ones were made while there were no faults.
        durable: whether its history cannot be lost.
    """

    def __init__(self, stream: str, sent: Iterable[Sent], *, durable: bool) -> None:
        self.stream = stream
        self.durable = durable
        self.sent = sorted((one for one in sent if one.stream == stream), key=lambda one: one.begun)
        stored = [one for one in self.sent if one.position is not None]
        if not stored:
            raise ValueError(f"nothing was stored in {stream!r}")
        self.first_epoch = _epoch(stored[0])
        self.last_epoch = _epoch(stored[-1])
        #: The greatest offset that was given in each epoch, as far as broadcasters know.
        self.tails: dict[str, int] = {}
        for one in stored:
            self.tails[_epoch(one)] = max(self.tails.get(_epoch(one), 0), _offset(one))

    @property
    def end(self) -> Position:
        """The position of the newest message, as far as broadcasters know."""
        return self.last_epoch, self.tails[self.last_epoch]

    def reached(self, position: Position) -> bool:
        """Whether that is the newest message; or a later one, whose position its caller does not know."""
        return position[0] == self.last_epoch and position[1] >= self.end[1]

    def lost_during(self, one: Sent, epochs: Iterable[str]) -> bool:
        """Whether a broadcast is in the last of some epochs by its position, and that one began during its call.

        Then a first try may have stored it in a former epoch, whose loss made the next try store it again: nobody could
        know that it had been there.
        """
        if one.position is None:
            return False
        # In the order of their first broadcasts.
        later = list(self.tails)[list(self.tails).index(_epoch(one)) + 1 :]
        known_before = [other for other in self.sent if other.position and _epoch(other) == _epoch(one)]
        return not set(epochs).intersection(later) and all(other.ended >= one.begun for other in known_before)

    def begun_after(self, time: float, epoch: str, before: int) -> list[int]:
        """Return the offsets below `before` of an epoch's messages that were broadcast after a time."""
        return [
            _offset(one)
            for one in self.sent
            if one.position is not None and _epoch(one) == epoch and _offset(one) < before and one.begun > time
        ]


def judge_log(truth: Truth, where: str, log: Log) -> list[Finding]:
    """Say what is wrong with what one client got of one stream."""
    findings: list[Finding] = []
    runs = _runs(log)
    former = ""
    met: set[str] = set()
    for run in runs:
        if run.epoch in met:
            what = f"{run.epoch} came back after {former}, at {run.first}"
            findings.append(Finding(DISORDERED, where, what, len(run.offsets)))
        elif former or run.epoch != truth.first_epoch or run.first != 1:
            if run.signal is None:
                kind = UNSIGNALLED if former or run.epoch != truth.first_epoch else LOST
                what = f"{former or 'the beginning'} was followed by ({run.epoch}, {run.first}) without a word"
                findings.append(Finding(kind, where, what))
            else:
                late = truth.begun_after(run.signal, run.epoch, run.first)
                if late:
                    what = f"of {run.epoch}, broadcast after the signal, before {run.first}: {late[:10]}"
                    findings.append(Finding(LOST, where, what, len(late)))
        if truth.durable and run.epoch != truth.first_epoch:
            findings.append(Finding(LOST, where, f"the epoch {run.epoch} is not {truth.first_epoch}"))
        former = run.epoch
        met.add(run.epoch)
        findings += _judge_run(where, run)
    last = runs[-1] if runs else None
    if last is None or not truth.reached((last.epoch, max(last.offsets))):
        tail = truth.end[1]
        reached = max(last.offsets) if last is not None and last.epoch == truth.last_epoch else 0
        what = f"it ends at ({last.epoch if last else ''}, {reached}), not at {truth.end}"
        findings.append(Finding(LOST, where, what, max(tail - reached, 1)))
    findings += _judge_signals(truth, where, log)
    return findings


def judge_store(truth: Truth, logs: Mapping[str, Log]) -> list[Finding]:
    """Say what is wrong with a stream whoever looks at it: positions used twice, messages stored twice, and the like.

    Args:
        truth: what was broadcast.
        logs: what each client got of this stream.
    """
    at: defaultdict[Position, set[str]] = defaultdict(set)
    for one in truth.sent:
        if one.position is not None:
            at[one.position].add(one.id)
    for log in logs.values():
        for event in log:
            if isinstance(event, Delivery):
                at[event.epoch, event.offset].add(event.id)
    findings = [
        Finding(UNFOUNDED, truth.stream, f"{position} is {', '.join(sorted(ids))}", len(ids) - 1)
        for position, ids in sorted(at.items())
        if len(ids) > 1
    ]
    sent = {one.id: one for one in truth.sent}
    places: defaultdict[str, set[Position]] = defaultdict(set)
    for position, ids in at.items():
        for id_ in ids:
            places[id_].add(position)
    for id_, positions in sorted(places.items()):
        known = sent.get(id_)
        epochs = Counter(epoch for epoch, _ in positions)
        if known is None:
            findings.append(Finding(UNFOUNDED, truth.stream, f"{id_} was never broadcast"))
        elif known.fate is Fate.REFUSED:
            findings.append(Finding(UNFOUNDED, truth.stream, f"{id_} was refused, and is at {sorted(positions)}"))
        elif len(positions) > 1:
            if truth.durable or max(epochs.values()) > 1 or not truth.lost_during(known, epochs):
                findings.append(Finding(REPEATED, truth.stream, f"{id_} is stored at {sorted(positions)}"))
    findings += [
        Finding(LOST, truth.stream, f"{one.id} was committed, and nobody got it")
        for one in truth.sent
        if one.fate is Fate.COMMITTED and one.id not in places
    ]
    epoch, tail = truth.end
    empty = [offset for offset in range(1, tail + 1) if (epoch, offset) not in at]
    if empty:
        findings.append(Finding(UNFOUNDED, truth.stream, f"nothing is at {empty[:10]} of {epoch}", len(empty)))
    return findings


@dataclass(slots=True)
class _Run:
    """Deliveries of one epoch, without another one's between."""

    epoch: str
    #: When the client was last told of a loss before it.
    signal: float | None
    offsets: list[int]

    @property
    def first(self) -> int:
        return self.offsets[0]


def _runs(log: Log) -> list[_Run]:
    runs: list[_Run] = []
    signal: float | None = None
    for event in log:
        if isinstance(event, Signal):
            signal = event.at
        elif runs and runs[-1].epoch == event.epoch:
            runs[-1].offsets.append(event.offset)
            signal = None
        else:
            runs.append(_Run(event.epoch, signal, [event.offset]))
            signal = None
    return runs


def _judge_run(where: str, run: _Run) -> list[Finding]:
    """Find gaps, repeats and disorder within one epoch."""
    findings: list[Finding] = []
    seen: set[int] = set()
    greatest = run.first - 1
    for offset in run.offsets:
        if offset in seen:
            findings.append(Finding(REPEATED, where, f"({run.epoch}, {offset})"))
        elif offset < greatest:
            findings.append(Finding(DISORDERED, where, f"({run.epoch}, {offset}) came after {greatest}"))
        seen.add(offset)
        greatest = max(greatest, offset)
    missing = sorted(set(range(run.first, greatest + 1)) - seen)
    if missing:
        findings.append(Finding(LOST, where, f"of {run.epoch}: {missing[:10]}", len(missing)))
    return findings


def _judge_signals(truth: Truth, where: str, log: Log) -> list[Finding]:
    """Find signals that are not between two epochs: nothing was lost there."""
    findings: list[Finding] = []
    before = ""
    waiting: list[Signal] = []
    for event in log:
        if isinstance(event, Signal):
            waiting.append(event)
            continue
        begins = not before and event.epoch != truth.first_epoch
        if waiting and (truth.durable or event.epoch == before or not (before or begins)):
            what = (
                f"told of a loss {len(waiting)} times before ({event.epoch}, {event.offset}), after {before or 'none'}"
            )
            findings.append(Finding(NEEDLESS, where, what, len(waiting)))
        waiting = []
        before = event.epoch
    if waiting and before == truth.last_epoch:
        findings.append(Finding(NEEDLESS, where, f"told of a loss after the end, in {before}", len(waiting)))
    return findings


def _epoch(one: Sent) -> str:
    assert one.position is not None
    return one.position[0]


def _offset(one: Sent) -> int:
    assert one.position is not None
    return one.position[1]
