"""Judges the records of a storm, by pure functions: each broken guarantee is a `Finding`.

If the history of a stream cannot be lost, each client must receive exactly the messages that were broadcast, from the
first one on. If a store loses data, the epoch changes. A client must then be told of the loss (`history_not_found`)
between its last message of the former epoch and its first message of the new one. Within an epoch, no message may be
missing, repeated or out of order. No message that was broadcast after the client was told of the loss may be missing.
An acknowledged message may be missing only for clients that were told of a loss after its broadcast.

On a stream with a small history, one more loss is allowed: a client that was disconnected, and missed more than the
history keeps, is told of a loss. A client that stayed connected must receive all messages.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .truth import Connected, Delivery, Log, Position, Result, Signal, Truth, epoch_of, offset_of

#: Kinds of findings.
LOST = "lost"
REPEATED = "repeated"
DISORDERED = "out of order"
UNSIGNALLED = "new epoch, not signalled"
UNTOLD = "acknowledged, lost, not signalled"
NUMBERED_TWICE = "position used twice"
NEEDLESS = "needless signal"
INCONSISTENT = "inconsistent"
KINDS = (LOST, REPEATED, DISORDERED, UNSIGNALLED, UNTOLD, NUMBERED_TWICE, NEEDLESS, INCONSISTENT)


@dataclass(frozen=True, slots=True)
class Finding:
    """A guarantee that was broken.

    Args:
        kind: one of `KINDS`.
        where: the client and the stream.
        what: a description for people.
        count: how many messages are affected.
    """

    kind: str
    where: str
    what: str
    count: int = 1


def judge_log(truth: Truth, where: str, log: Log) -> list[Finding]:
    """Return the broken promises in the log of one client on one stream."""
    findings: list[Finding] = []
    steps = list(_steps(log))
    runs = _runs(truth, steps)
    former = ""
    met: set[str] = set()
    for run in runs:
        if run.epoch in met:
            what = f"the epoch {run.epoch} returned after {former}, at the offset {run.first}"
            findings.append(Finding(DISORDERED, where, what, len(run.offsets)))
        elif former or run.epoch != truth.first_epoch or run.first != 1:
            findings += _judge_beginning(truth, where, run, former)
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
    findings += _judge_signals(truth, where, steps)
    findings += _judge_untold(truth, where, log, runs)
    return findings


def judge_store(truth: Truth, logs: Mapping[str, Log]) -> list[Finding]:
    """Return the broken promises of a stream that concern all clients, such as messages that are stored twice.

    Args:
        truth: the broadcasts to the stream.
        logs: the log of each client on this stream.
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
        Finding(NUMBERED_TWICE, truth.stream, f"{position} is {', '.join(sorted(ids))}", len(ids) - 1)
        for position, ids in sorted(at.items())
        if len(ids) > 1 and not truth.may_be_renumbered(position, ids)
    ]
    places: defaultdict[str, set[Position]] = defaultdict(set)
    for position, ids in at.items():
        for id_ in ids:
            places[id_].add(position)
    findings += _judge_places(truth, places)
    findings += _judge_committed(truth, places, logs)
    epoch, tail = truth.end
    excused = set.intersection(*(_excused(truth, log) for log in logs.values())) if logs else set()
    empty = [offset for offset in range(1, tail + 1) if (epoch, offset) not in at and offset not in excused]
    if empty:
        findings.append(Finding(INCONSISTENT, truth.stream, f"no message is at {empty[:10]} of {epoch}", len(empty)))
    for needless in truth.needless_epochs():
        findings.append(Finding(NEEDLESS, truth.stream, f"the epoch {needless} began although no data was lost"))
    return findings


# -- the store --------------------------------------------------------------------------------------------------------


def _judge_places(truth: Truth, places: Mapping[str, set[Position]]) -> list[Finding]:
    """Find messages that are stored at wrong positions."""
    findings: list[Finding] = []
    sent = {one.id: one for one in truth.sent}
    for id_, positions in sorted(places.items()):
        known = sent.get(id_)
        epochs = Counter(epoch for epoch, _ in positions)
        if known is None:
            findings.append(Finding(INCONSISTENT, truth.stream, f"{id_} was never broadcast"))
        elif known.result is Result.REFUSED:
            findings.append(Finding(INCONSISTENT, truth.stream, f"{id_} was refused, and is at {sorted(positions)}"))
        elif len(positions) > 1:
            if truth.durable or max(epochs.values()) > 1 or not truth.may_be_in(known, epochs):
                findings.append(Finding(REPEATED, truth.stream, f"{id_} is stored at {sorted(positions)}"))
    return findings


def _judge_committed(truth: Truth, places: Mapping[str, set[Position]], logs: Mapping[str, Log]) -> Iterator[Finding]:
    """Find committed broadcasts that no client received, although some clients were not told of a loss afterwards."""
    told = [_last_signal(log) for log in logs.values()]
    for one in truth.sent:
        if one.result is Result.COMMITTED and one.id not in places:
            untold = sum(signal is None or signal < one.begun for signal in told)
            if untold:
                what = f"{one.id} was committed, no client received it, and {untold} of {len(told)} were not told"
                yield Finding(UNTOLD, truth.stream, what)


def _excused(truth: Truth, log: Log) -> set[int]:
    """Return the offsets that a client may have missed in the last epoch, because it was told of the loss."""
    excused: set[int] = set()
    for step in _steps(log):
        if step.after is None or step.after.epoch != truth.last_epoch:
            continue
        if step.before is None or step.before.epoch != step.after.epoch:
            excused.update(range(1, step.after.offset) if step.signals else ())
        elif step.missed_history(truth):
            excused.update(step.missing)
    return excused


# -- a client ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Step:
    """Two deliveries in a row, and the notices of a loss that the client received between them."""

    before: Delivery | None
    after: Delivery | None = None
    signals: list[Signal] = field(default_factory=list)
    #: Whether the client has connected between the first of the deliveries and the last of these notices.
    away: bool = False

    @property
    def missing(self) -> range:
        """The offsets between the two deliveries, which are of one epoch."""
        assert self.before is not None
        assert self.after is not None
        return range(self.before.offset + 1, self.after.offset)

    def missed_history(self, truth: Truth) -> bool:
        """Return whether the client reconnected, had missed more than the history holds, and got a notice of it."""
        if self.before is None or self.after is None or self.before.epoch != self.after.epoch:
            return False
        told = bool(self.signals) and self.away
        return told and truth.history_size is not None and len(self.missing) > truth.history_size

    def was_rightly_told(self, truth: Truth) -> bool:
        """Return whether a notice of a loss was right. The client may have received the missed messages afterwards."""
        if self.before is None or not self.away:
            return False
        return self.missed_history(truth) or truth.exceeded(self.before.at, self.signals[-1].at)


def _steps(log: Log) -> Iterator[_Step]:
    step = _Step(None)
    connected = False
    for event in log:
        if isinstance(event, Connected):
            connected = True
        elif isinstance(event, Signal):
            step.signals.append(event)
            step.away = connected
        else:
            step.after = event
            yield step
            step = _Step(event)
            connected = False
    yield step


@dataclass(slots=True)
class _Run:
    """Consecutive deliveries of one epoch."""

    epoch: str
    #: The time of the last notice of a loss between the previous delivery and the first of these deliveries; None if
    #: there was no notice.
    signal: float | None
    offsets: list[int]
    #: The offsets that the client missed while it was disconnected and that the history no longer kept.
    excused: set[int] = field(default_factory=set)
    #: The offsets of missed messages that were broadcast after the client was told of a loss, in this epoch.
    late: list[int] = field(default_factory=list)

    @property
    def first(self) -> int:
        return self.offsets[0]


def _runs(truth: Truth, steps: list[_Step]) -> list[_Run]:
    runs: list[_Run] = []
    for step in steps:
        if step.after is None:
            continue
        if not runs or runs[-1].epoch != step.after.epoch:
            runs.append(_Run(step.after.epoch, step.signals[-1].at if step.signals else None, []))
        elif step.missed_history(truth):
            runs[-1].excused.update(step.missing)
            runs[-1].late += truth.begun_after(step.signals[-1].at, step.after.epoch, step.missing)
        runs[-1].offsets.append(step.after.offset)
    return runs


def _judge_beginning(truth: Truth, where: str, run: _Run, former: str) -> Iterator[Finding]:
    """Find errors at the beginning of an epoch, for a client that was in another epoch or in none."""
    if run.signal is None:
        kind = UNSIGNALLED if former or run.epoch != truth.first_epoch else LOST
        what = f"{former or 'the beginning'} was followed by ({run.epoch}, {run.first}) without a signal"
        yield Finding(kind, where, what)
    elif late := truth.begun_after(run.signal, run.epoch, range(1, run.first)):
        what = f"of {run.epoch}, broadcast after the signal, before {run.first}: {late[:10]}"
        yield Finding(LOST, where, what, len(late))


def _judge_run(where: str, run: _Run) -> list[Finding]:
    """Find missing, repeated and disordered messages within one epoch."""
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
    missing = sorted(set(range(run.first, greatest + 1)) - seen - run.excused)
    if missing:
        findings.append(Finding(LOST, where, f"of {run.epoch}: {missing[:10]}", len(missing)))
    if run.late:
        what = f"of {run.epoch}, broadcast after the client had reconnected and was told: {run.late[:10]}"
        findings.append(Finding(LOST, where, what, len(run.late)))
    return findings


def _judge_signals(truth: Truth, where: str, steps: list[_Step]) -> Iterator[Finding]:
    """Find needless notices of a loss: those without a change of the epoch and without a long absence of the client."""
    for step in steps:
        before = "" if step.before is None else step.before.epoch
        if all(truth.is_in_doubt(signal.at) for signal in step.signals):
            continue
        if step.after is None:
            if before == truth.last_epoch:
                what = f"told of a loss after the end, in {before}"
                yield Finding(NEEDLESS, where, what, len(step.signals))
            continue
        epoch = step.after.epoch
        begins = not before and epoch != truth.first_epoch
        changes = epoch != before and bool(before or begins) and not truth.durable
        if not changes and not step.was_rightly_told(truth):
            what = f"told of a loss {len(step.signals)} times before ({epoch}, {step.after.offset})"
            yield Finding(NEEDLESS, where, f"{what}, after {before or 'none'}", len(step.signals))


def _judge_untold(truth: Truth, where: str, log: Log, runs: list[_Run]) -> Iterator[Finding]:
    """Find acknowledged messages of ended epochs that were broadcast after the client was last told of a loss.

    Other functions find missing messages within an epoch, and changes of the epoch without a signal.
    """
    told = _last_signal(log)
    if told is None:
        return
    got = {event.id for event in log if isinstance(event, Delivery)}
    gaps = {
        (run.epoch, offset) for run in runs for offset in set(range(run.first, max(run.offsets))) - set(run.offsets)
    }
    untold = [
        one.position
        for one in truth.sent
        if one.position is not None
        and epoch_of(one) != truth.last_epoch
        and one.begun > told
        and one.id not in got
        and (epoch_of(one), offset_of(one)) not in gaps
    ]
    if untold:
        yield Finding(UNTOLD, where, f"acknowledged after it was last told: {untold[:10]}", len(untold))


def _last_signal(log: Log) -> float | None:
    """Return the time of the last notice of a loss that a client received; None if it received none."""
    return max((event.at for event in log if isinstance(event, Signal)), default=None)
