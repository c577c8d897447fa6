"""Decides whether a request to append to a stream or to close it is accepted. It does no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from .framing import media_type

#: The maximum number of producers whose state a stream keeps.
MAX_PRODUCERS: Final = 256


@dataclass(frozen=True, slots=True)
class Producer:
    """The headers of an idempotent producer: a client that numbers its requests, so that none is appended twice.

    Args:
        id: the id that the client has chosen.
        epoch: a number that the client increases each time it restarts. It is not the epoch of a stream.
        sequence: the number of the request in this epoch, from 0.
    """

    id: str
    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Append:
    """A request to append to a stream, or to close it.

    Args:
        has_data: whether the request has a body.
        content_type: the content type of the body.
        close: whether to close the stream.
        sequence: the header `Stream-Seq`; `""` if there is none.
        producer: the headers of the producer, if there are any.
    """

    has_data: bool
    content_type: str = ""
    close: bool = False
    sequence: str = ""
    producer: Producer | None = None


@dataclass(slots=True)
class WriterState:
    """The state of the writers of a stream.

    Args:
        content_type: the content type of the stream.
        closed: whether the stream is closed.
        sequence: the last `Stream-Seq`, or `""`.
        producers: for each producer, its epoch and the sequence number of its last request.
        closed_by: the producer, epoch and sequence number of the request that closed the stream; None if the stream is
            open, or the request had no producer.
    """

    content_type: str
    closed: bool = False
    sequence: str = ""
    producers: dict[str, list[int]] = field(default_factory=dict)
    closed_by: list[str | int] | None = None


class Outcome(Enum):
    """The result of `decide`."""

    ACCEPTED = "accepted"
    #: The same request was accepted before, or the request only closes a stream that is already closed.
    REPEATED = "repeated"
    CLOSED = "closed"
    OTHER_TYPE = "other type"
    OLD_SEQUENCE = "old sequence"
    OLD_EPOCH = "old epoch"
    EPOCH_WITHOUT_START = "epoch without start"
    GAP = "gap"
    TOO_MANY_PRODUCERS = "too many producers"


def decide(state: WriterState, append: Append) -> Outcome:
    """Check a request, and return the outcome. If the request is accepted, change the state."""
    outcome = _check(state, append)
    if outcome is Outcome.ACCEPTED:
        producer = append.producer
        if producer is not None:
            state.producers[producer.id] = [producer.epoch, producer.sequence]
        if append.sequence:
            state.sequence = append.sequence
        if append.close:
            state.closed = True
            state.closed_by = _key(producer)
    return outcome


def expected_sequence(state: WriterState, producer: Producer) -> int:
    """Return the sequence number that the next request of a producer in the same epoch must have."""
    known = state.producers.get(producer.id)
    return 0 if known is None else known[1] + 1


def _check(state: WriterState, append: Append) -> Outcome:
    producer = append.producer
    if state.closed:
        return _check_closed(state, append)
    if append.has_data and media_type(append.content_type) != media_type(state.content_type):
        return Outcome.OTHER_TYPE
    if producer is not None:
        outcome = _check_producer(state, producer)
        if outcome is not Outcome.ACCEPTED:
            return outcome
    # Django decodes headers as Latin-1, so this compares their bytes.
    if append.sequence and state.sequence and append.sequence <= state.sequence:
        return Outcome.OLD_SEQUENCE
    return Outcome.ACCEPTED


def _check_closed(state: WriterState, append: Append) -> Outcome:
    producer = append.producer
    if producer is None:
        return Outcome.CLOSED if append.has_data else Outcome.REPEATED
    if _key(producer) == state.closed_by:
        return Outcome.REPEATED
    known = state.producers.get(producer.id)
    return Outcome.OLD_EPOCH if known is not None and producer.epoch < known[0] else Outcome.CLOSED


def _check_producer(state: WriterState, producer: Producer) -> Outcome:
    known = state.producers.get(producer.id)
    if known is None:
        if len(state.producers) >= MAX_PRODUCERS:
            return Outcome.TOO_MANY_PRODUCERS
        return Outcome.GAP if producer.sequence else Outcome.ACCEPTED
    epoch, last = known
    if producer.epoch < epoch:
        return Outcome.OLD_EPOCH
    if producer.epoch > epoch:
        return Outcome.EPOCH_WITHOUT_START if producer.sequence else Outcome.ACCEPTED
    if producer.sequence <= last:
        return Outcome.REPEATED
    return Outcome.ACCEPTED if producer.sequence == last + 1 else Outcome.GAP


def _key(producer: Producer | None) -> list[str | int] | None:
    return None if producer is None else [producer.id, producer.epoch, producer.sequence]
