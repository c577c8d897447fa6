"""Recovery as pure functions: what may go out next, what is a repeat, and what is missing.

A reader's position moves only through `judge` and `advance`. Whatever order live messages, pages of history, trims and
new epochs come in, the messages these let through are those of the stream, in offset order, none twice; where some can
no longer be had, `Step.lost` says so before anything after the gap goes out (PROTOCOL.md, 4, 8, 9 and 10).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from .positions import HistoryRequest, StreamPosition


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept message of a stream.

    Args:
        offset: its place, from 1.
        data: the payload as JSON text.
        exclude: the session id that must not receive it, or `""`.
    """

    offset: int
    data: str
    exclude: str = ""


@dataclass(frozen=True, slots=True)
class StreamPage:
    """A part of a stream's history, and the stream's state when it was read.

    Args:
        epoch: the stream's epoch; `""` if the stream does not exist.
        tail: the offset of its newest message, kept or not; 0 if it never had any.
        low: the offset of the oldest message that is kept; `tail + 1` if none is.
        entries: kept messages in offset order.
    """

    epoch: str
    tail: int
    low: int
    entries: Sequence[Entry] = ()


class Verdict(Enum):
    """What a live message is to a reader at some position."""

    NEXT = "next"  #: exactly what comes next
    REPEAT = "repeat"  #: had already
    GAP = "gap"  #: something before it is missing, or the epoch is another one: read the store


def judge(position: StreamPosition, epoch: str, offset: int) -> Verdict:
    """Say what a live message `(epoch, offset)` is to a reader that stands at `position`."""
    if epoch == position.epoch:
        if offset == position.offset + 1:
            return Verdict.NEXT
        return Verdict.REPEAT if offset <= position.offset else Verdict.GAP
    # Also where the reader has no epoch yet: a late repeat from an epoch that was forgotten looks like a first message.
    return Verdict.GAP


@dataclass(frozen=True, slots=True)
class Step:
    """How far a page takes a reader.

    Args:
        entries: what to send now, in this order.
        position: where the reader then stands.
        lost: messages between the old position and the first entry can no longer be had: say so before sending.
    """

    entries: Sequence[Entry]
    position: StreamPosition
    lost: bool = False


def advance(position: StreamPosition, page: StreamPage, *, upto: int | None = None) -> Step:
    """Take a reader from `position` as far as `page` allows.

    Args:
        position: where the reader stands.
        page: what the store returned when it was read after `position.offset`.
        upto: the greatest offset to send; None: all of the page. Applies to the page's epoch.

    A page of another epoch, a page that no longer holds the next message, and a tail that lies before the reader all
    lose the reader's place: it starts anew at the page's oldest message. If the next message alone is missing, the
    reader goes on behind it.
    """
    if not page.epoch:
        # The stream is gone (forgotten), or never was; only a reader that has seen something lost its place.
        return Step((), StreamPosition("", 0), lost=position.offset > 0)
    start = position.offset
    lost = position.epoch not in (page.epoch, "") or position.offset > page.tail or page.low > position.offset + 1
    if lost:
        start = page.low - 1
    sent: list[Entry] = []
    last = start
    for entry in page.entries:
        if entry.offset <= last:
            continue
        if upto is not None and entry.offset > upto:
            break
        if entry.offset != last + 1:
            if sent or lost:
                break
            # Somebody deleted the next message: without this, its reader would stand here for ever.
            lost = True
        sent.append(entry)
        last = entry.offset
    return Step(sent, StreamPosition(page.epoch, last), lost)


def went_back(asked: StreamPosition, page: StreamPage) -> bool:
    """Return whether a page proves that the store has lost messages.

    Within an epoch, the tail decreases only if the data were restored from a backup, or failed over to an older copy.

    Args:
        asked: the stream's position when the read began.
        page: the page that was read.
    """
    return page.epoch == asked.epoch and page.tail < asked.offset


def recoverable(position: StreamPosition, page: StreamPage) -> bool:
    """Say whether a reader at `position` can be given all that came after it.

    A position equal to the tail is satisfied with nothing, whatever expired; `low - 1` is still complete.
    """
    if not page.epoch:
        return position.epoch == "" and position.offset == 0
    if position.epoch not in (page.epoch, ""):
        return False
    return page.low - 1 <= position.offset <= page.tail


def requested_position(request: HistoryRequest, names: Sequence[str]) -> StreamPosition | None:
    """Return the position a request holds for a stream that the client may know under several stream ids.

    Args:
        request: what the client sent.
        names: the stream's ids for this identifier, the most specific one first.
    """
    streams: Mapping[str, StreamPosition] = request.streams
    for name in names:
        if name in streams:
            return streams[name]
    return None
