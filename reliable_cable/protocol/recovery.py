"""The rules of recovery. These pure functions decide which message is sent next, and whether messages are lost.

A stream numbers its messages from 1, without holes. This numbering is called an *epoch*, and the number of a message is
its *offset*. A stream starts a new epoch if its numbers cannot be continued, for example after the store lost its data.
The store trims old messages, so that only those from `low` to `tail` can still be read.

A subscriber has a *position*, which is the epoch and offset of the last message that it has received. Two functions
decide how the position changes:

* `judge` compares a live message with the position. The message may be the next one, and is then sent. It may be a
  repeat, and is then skipped. Or there is a gap before it, and the history after the position must be read.
* `advance` applies a page of history that was read from the store. It returns the messages to send, and the position
  after them. If messages between the old position and the first message to send no longer exist, it sets `Step.lost`.
  The client must be told of this loss before the messages are sent.

A replay works as follows. A client that reconnects sends its position in each stream. For each stream, the server reads
a page after the position, and calls `recoverable` to find out whether all messages after it are stored. If messages of
any stream are missing, the client receives `reject_history`, and nothing is replayed. If all messages are stored, the
server sends one page after another, each through `advance`, until the position reaches the tail. Then it sends
`confirm_history`. If messages were trimmed during the replay, it sends `reject_history` in place of `confirm_history`.
Live messages are not sent during the replay. They are in a later page, or are sent after the replay.

So a subscriber receives the messages of a stream in the order of their offsets, none of them twice, and every missing
message is reported. This holds for any order of live messages, pages, trims and new epochs. See Protocol: History.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from .positions import HistoryRequest, StreamPosition, is_later_epoch


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored message of a stream.

    Args:
        offset: the number of the message in the stream's epoch, from 1.
        data: the payload as JSON text.
        exclude: the id of the session that must not receive the message; `""` if all may receive it.
    """

    offset: int
    data: str
    exclude: str = ""


@dataclass(frozen=True, slots=True)
class StreamPage:
    """A part of a stream's history, and the state of the stream when this part was read.

    Args:
        epoch: the stream's epoch; `""` if the stream does not exist.
        tail: the offset of the newest message, even if it was trimmed; 0 if the epoch has had no messages.
        low: the offset of the oldest message that is still stored; `tail + 1` if no message is stored.
        entries: the stored messages in this part, in the order of their offsets.
        lineage: the name of the store's data set; `""` if it is unknown. The name changes if data may have been lost.

    Attributes:
        size: the total size of the payloads, in characters.
    """

    epoch: str
    tail: int
    low: int
    entries: Sequence[Entry] = ()
    lineage: str = field(default="", compare=False)
    size: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum([len(entry.data) for entry in self.entries]))

    @property
    def is_last(self) -> bool:
        """Whether the stream had no entries after this page."""
        return not self.entries or self.entries[-1].offset >= self.tail


class Verdict(Enum):
    """The relation of a live message to a subscriber's position."""

    #: The message directly follows the position. Send it.
    NEXT = "next"
    #: The subscriber has already received the message. Skip it.
    REPEAT = "repeat"
    #: Messages before the message are missing, or its epoch differs. Read the history from the store.
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
    # This is a gap even if the position has no epoch. A message with the offset 1 then seems to be the next one, but it
    # may be a late repeat from an epoch that was deleted.
    return Verdict.GAP


@dataclass(frozen=True, slots=True)
class Step:
    """The result of `advance`.

    Args:
        entries: the messages to send now, in this order.
        position: the subscriber's position after these messages.
        lost: whether messages between the old position and the first entry no longer exist. The client must be told of
            this before the entries are sent.
    """

    entries: Sequence[Entry]
    position: StreamPosition
    lost: bool = False


def advance(position: StreamPosition, page: StreamPage, *, upto: int | None = None) -> Step:
    """Move a subscriber's position forward with a page of history.

    Messages are lost if the page is of another epoch, if the message after the position was trimmed, or if the stream's
    tail is before the position. (A position without an epoch belongs to the first epoch of the stream only.) The
    subscriber then continues with the oldest message that is still stored.

    If the message after the position is missing although it was not trimmed, it was deleted by hand. The subscriber
    then continues with the first message of the page, and messages count as lost.

    Args:
        position: the position of the last message that the subscriber received.
        page: the history after `position.offset`.
        upto: the greatest offset to send, in the page's epoch; None if there is no limit.
    """
    if not page.epoch:
        # The stream was deleted or never existed. A position with an epoch proves that the stream had messages.
        return Step((), StreamPosition("", 0), lost=position != StreamPosition("", 0))
    start = position.offset
    lost = not _in_epoch(position, page) or position.offset > page.tail or page.low > position.offset + 1
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

    In an epoch, the tail decreases only if the data was restored from a backup, or if the store failed over to a copy
    that lacked the newest messages.

    Args:
        asked: the position of the stream's newest known message when the read began.
        page: the page that was read.
    """
    return page.epoch == asked.epoch and page.tail < asked.offset


def recoverable(position: StreamPosition, page: StreamPage) -> bool:
    """Return whether all messages after a position are still stored.

    The result is always True for the position of the newest message, because no messages follow it. It is also True for
    the offset `low - 1`, which is directly before the oldest stored message.

    Args:
        position: the position of the last message that the subscriber received.
        page: a page of the stream, which contains the stream's epoch, `low` and `tail`.
    """
    if not page.epoch:
        return position.epoch == "" and position.offset == 0
    if not _in_epoch(position, page):
        return False
    return page.low - 1 <= position.offset <= page.tail


def _in_epoch(position: StreamPosition, page: StreamPage) -> bool:
    """Return whether a position belongs to the epoch of a page.

    A position without an epoch is from before the stream's first message. It belongs to the first epoch.
    """
    return position.epoch == page.epoch or (position.epoch == "" and not is_later_epoch(page.epoch))


def requested_position(request: HistoryRequest, names: Sequence[str]) -> StreamPosition | None:
    """Return the position in a history request for a stream; None if the request has none.

    A client may know the stream under several stream ids, see Protocol: Stream ids.

    Args:
        request: the request of the client.
        names: the stream ids that this subscription may use for the stream, the preferred one first.
    """
    return next((request.streams[name] for name in names if name in request.streams), None)
