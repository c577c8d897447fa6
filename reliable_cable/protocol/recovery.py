"""The rules of recovery, as pure functions: which message a subscriber may receive next, and when messages are lost.

A stream numbers its messages from 1, without holes. This numbering is called an *epoch*, and the number of a message is
its *offset*. A stream starts a new epoch if its numbers cannot be continued, for example after the store lost its data.
The store trims old messages, so that only those from `low` to `tail` can still be read.

A subscriber has a *position*: epoch and offset of the last message that it received. Two functions move it:

* `judge` compares a live message with the position. The message is the next one and may be sent; or it is a repeat and
  is skipped; or there is a gap before it, and the history after the position has to be read.
* `advance` applies a page of history that was read from the store. It returns the messages to send, and the position
  after them. If the page shows that messages between the old position and the first one to send no longer exist, it
  sets `Step.lost`. The client must be told of the loss before these messages are sent.

A replay works as follows. A client that reconnects names its position in each stream. For each stream, the server reads
a page after that position and asks `recoverable` whether it is complete. If one stream is not, the client is sent
`reject_history` and nothing is replayed. Otherwise the server sends page after page, each through `advance`, until the
position reaches the tail. Then it sends `confirm_history`, or `reject_history` if messages were lost, because they were
trimmed meanwhile. Live messages that arrive during the replay are not sent at once. They are in the pages that are read
later, or `judge` lets them through afterwards.

So a subscriber receives the messages of a stream in the order of their offsets, none of them twice, and every missing
message is reported. This holds for any order of live messages, pages, trims and new epochs. See Protocol: History.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .positions import HistoryRequest, StreamPosition


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored message of a stream.

    Args:
        offset: its number in the stream's epoch, from 1.
        data: the payload as JSON text.
        exclude: the id of the session that must not receive the message; `""` if there is none.
    """

    offset: int
    data: str
    exclude: str = ""


@dataclass(frozen=True, slots=True)
class StreamPage:
    """Part of a stream's history, with the state of the stream at the time of the read.

    Args:
        epoch: the stream's epoch; `""` if the stream does not exist.
        tail: the offset of the newest message, even if it was trimmed; 0 if there was none in this epoch.
        low: the offset of the oldest message that is still stored; `tail + 1` if there is none.
        entries: stored messages in the order of their offsets.
        lineage: the name of the unbroken data set that was read; `""` if that is unknown.
    """

    epoch: str
    tail: int
    low: int
    entries: Sequence[Entry] = ()
    lineage: str = field(default="", compare=False)

    @property
    def is_last(self) -> bool:
        """Whether the stream had no entries after this page."""
        return not self.entries or self.entries[-1].offset >= self.tail


class Verdict(Enum):
    """How a live message relates to a subscriber's position."""

    #: It directly follows the position: send it.
    NEXT = "next"
    #: The subscriber has received it before: skip it.
    REPEAT = "repeat"
    #: Messages before it are missing, or its epoch differs: read the history from the store.
    GAP = "gap"


def judge(position: StreamPosition, epoch: str, offset: int) -> Verdict:
    """Compare a live message with a subscriber's position.

    Args:
        position: the position of the last message that the subscriber received.
        epoch: the epoch of the live message.
        offset: the offset of the live message.
    """
    if epoch == position.epoch:
        if offset == position.offset + 1:
            return Verdict.NEXT
        return Verdict.REPEAT if offset <= position.offset else Verdict.GAP
    # This includes a position without an epoch. A message that looks like the first one of the stream may be a late
    # repeat from an epoch that was forgotten.
    return Verdict.GAP


@dataclass(frozen=True, slots=True)
class Step:
    """The result of `advance`.

    Args:
        entries: the messages to send now, in this order.
        position: the subscriber's position after them.
        lost: whether messages between the old position and the first entry no longer exist. If so, tell the client
            before sending the entries.
    """

    entries: Sequence[Entry]
    position: StreamPosition
    lost: bool = False


def advance(position: StreamPosition, page: StreamPage, *, upto: int | None = None) -> Step:
    """Move a subscriber's position forward with a page of history.

    Messages are lost if the page is of another epoch, if the message after the position was trimmed, or if the stream's
    tail is before the position. The subscriber then continues with the oldest message that is still stored.

    If the message after the position is missing although it was not trimmed, someone has deleted it. The subscriber
    then continues with the first message of the page, and the step is marked as lost.

    Args:
        position: the position of the last message that the subscriber received.
        page: the history after `position.offset`.
        upto: the greatest offset to send, in the page's epoch. None means no limit.
    """
    if not page.epoch:
        # The stream was forgotten or never existed. An epoch begins with its first message, which is lost.
        return Step((), StreamPosition("", 0), lost=position != StreamPosition("", 0))
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
            # The next message was deleted. A subscriber that waited for it would never receive anything again.
            lost = True
        sent.append(entry)
        last = entry.offset
    return Step(sent, StreamPosition(page.epoch, last), lost)


def went_back(asked: StreamPosition, page: StreamPage) -> bool:
    """Return whether the store has lost messages of the current epoch.

    Within an epoch, the tail decreases only if the data was restored from a backup, or if the store failed over to an
    older copy.

    Args:
        asked: the position of the stream's newest known message when the read began.
        page: the page that was read.
    """
    return page.epoch == asked.epoch and page.tail < asked.offset


def recoverable(position: StreamPosition, page: StreamPage) -> bool:
    """Return whether every message after a position is still stored.

    This holds for a position equal to the tail, even if all messages were trimmed, because nothing comes after it. It
    also holds for `low - 1`, the position before the oldest message.

    Args:
        position: the position of the last message that the subscriber received.
        page: a page of the stream, which tells the stream's epoch, `low` and `tail`.
    """
    if not page.epoch:
        return position.epoch == "" and position.offset == 0
    if position.epoch not in (page.epoch, ""):
        return False
    return page.low - 1 <= position.offset <= page.tail


def requested_position(request: HistoryRequest, names: Sequence[str]) -> StreamPosition | None:
    """Return the position in a history request for one stream; None if the request has none.

    A client may know the stream under several stream ids, see Protocol: Stream ids.

    Args:
        request: the request of the client.
        names: the stream ids that this subscription may use for the stream, the preferred one first.
    """
    return next((request.streams[name] for name in names if name in request.streams), None)
