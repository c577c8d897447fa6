"""Translates the events of a run to the messages of a protocol. It does no I/O.

The class `Translator` finds out what is new in each event. Its subclasses translate the new content to the messages of
a protocol.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from reliable_cable.runs import events
from reliable_cable.runs.models import ACTIVE, Status
from reliable_cable.runs.parts import REASONING, Content

#: A message of the protocol, which is sent as JSON.
Message = dict[str, Any]
#: A piece of text, or a part, that is appended to an answer.
Item = str | Mapping[str, Any]

#: The error message if the answer has changed in a way that the protocol cannot express.
BEGUN_ANEW: Final = "The answer was begun anew. Please load it again."

_STATUSES: Final = {
    events.COMPLETE: Status.COMPLETED,
    events.STOPPED: Status.STOPPED,
    events.ERROR: Status.FAILED,
}


class Translator(ABC):
    """Translates the events of one run. Call `start`, then `translate` for each event until `ended`."""

    def __init__(self) -> None:
        #: Whether the last message of the response was returned.
        self.ended = False
        self._attempt = 0
        #: The content that has been translated so far.
        self._sent = Content()
        #: The content of the latest snapshot and of the events after it, while `_sent` has more; None otherwise.
        self._older: Content | None = None

    @abstractmethod
    def start(self) -> Sequence[Message]:
        """Return the messages with which the response begins."""

    def translate(self, event: Mapping[str, Any]) -> Sequence[Message]:
        """Return the messages for an event. The list is empty if the event changes nothing for the client."""
        return [] if self.ended else list(self._translate(event))

    def fail(self, message: str) -> Sequence[Message]:
        """Return the messages that end the response with an error. The client keeps the content.

        Args:
            message: the text of the error, which the user reads.
        """
        return list(self._fail(message))

    def _translate(self, event: Mapping[str, Any]) -> Iterator[Message]:
        if event["attempt"] < self._attempt:
            return
        if event["attempt"] > self._attempt:
            if self._sent.length or self._sent.parts:
                # The client could not remove the content of the former attempt.
                yield from self._fail(BEGUN_ANEW)
                return
            self._attempt = event["attempt"]
            self._older = None
        match event["event"]:
            case events.SNAPSHOT:
                yield from self._take(Content(event["content"], [dict(part) for part in event["parts"]]))
                if event["status"] not in ACTIVE and not self.ended:
                    yield from self._end(event["status"], event["usage"], event["error"])
            case name if name in _STATUSES:
                yield from self._end(_STATUSES[name], event.get("usage") or {}, event.get("message", ""))
            case _ if (item := events.content_of(event)) is not None:
                if self._older is None:
                    yield from self._append(item)
                else:
                    self._older.add(item)
                    yield from self._take(self._older)

    def _take(self, content: Content) -> Iterator[Message]:
        """Translate the content that was not sent before. If `content` contradicts the sent content, call `_fail`."""
        self._older = None
        if _begins_with(content, self._sent):
            for item in list(_rest(content, self._sent)):
                yield from self._append(item)
        elif _begins_with(self._sent, content):
            # The events after the snapshot first repeat content that was sent.
            self._older = content
        else:
            yield from self._fail(BEGUN_ANEW)

    def _append(self, item: Item) -> Iterator[Message]:
        self._sent.add(item)
        yield from self._add(item)

    @abstractmethod
    def _add(self, item: Item) -> Iterator[Message]:
        """Yield the messages for a piece of text or a part that was appended to the answer."""

    @abstractmethod
    def _end(self, status: str, usage: Mapping[str, Any], error: str) -> Iterator[Message]:
        """Yield the messages for the end of the run, and set `ended`."""

    @abstractmethod
    def _fail(self, message: str) -> Iterator[Message]:
        """Yield the messages for an error that ends the response, and set `ended`."""


def _begins_with(content: Content, start: Content) -> bool:
    """Return whether `content` can be produced by additions to `start`."""
    if not content.text.startswith(start.text) or len(content.parts) < len(start.parts):
        return False
    if any(part["at"] < start.length for part in content.parts[len(start.parts) :]):
        return False
    if not start.parts:
        return True
    *parts, last = start.parts
    other = content.parts[len(parts)]
    return content.parts[: len(parts)] == parts and (other == last or _extends(other, last, start.length))


def _extends(part: Mapping[str, Any], former: Mapping[str, Any], length: int) -> bool:
    """Return whether a part is reasoning that continues a former part, after which there is no text."""
    return bool(
        part["type"] == REASONING == former["type"]
        and part["at"] == former["at"] == length
        and part["text"].startswith(former["text"])
    )


def _rest(content: Content, start: Content) -> Iterator[Item]:
    """Yield the pieces of text and the parts that must be added to `start` to produce `content`, in order."""
    count, position = len(start.parts), start.length
    if count and content.parts[count - 1] != start.parts[-1]:
        last = content.parts[count - 1]
        yield {**last, "text": last["text"][len(start.parts[-1]["text"]) :]}
    text = content.text
    for part in content.parts[count:]:
        if part["at"] > position:
            yield text[position : part["at"]]
            position = part["at"]
        yield part
    if position < len(text):
        yield text[position:]
