"""Encodes messages as server-sent events (HTML standard, section 9.2), in AnyCable's format.

A broadcast is encoded once for all readers of a stream. For a reader with several streams, the reader's event id is
added to the encoded text.
"""

import json
import re
from collections.abc import Callable
from typing import Any, ClassVar, Final, Self

from . import messages
from .constants import MessageType
from .event_ids import MAX_ID_SIZE, one_stream_id
from .frames import Frame
from .positions import StreamPosition

#: The key in a message that sets the type of its event. Readers that use GET receive only the data of a message such as
#: `{"$event": "price", "data": …}`. Other clients receive the whole object.
EVENT: Final = "$event"
#: The `retry` time, in milliseconds, for a reader that must not reconnect. It is a year, as in AnyCable.
NEVER: Final = 31_536_000_000

#: The frames whose events must have an id, so that the reader knows its positions.
ACKNOWLEDGEMENTS: Final = (MessageType.CONFIRM_SUBSCRIPTION, MessageType.CONFIRM_HISTORY, MessageType.REJECT_HISTORY)
#: The frames that are sent even if the reader requests messages only (`raw=1`), because they report a loss or the end
#: of the delivery.
_NEVER_HIDDEN: Final = (MessageType.REJECT_SUBSCRIPTION, MessageType.REJECT_HISTORY, MessageType.DISCONNECT)

#: The comments that readers with `raw=1` receive in place of some frames, by the type of the frame.
_RAW_COMMENTS: Final = {MessageType.PING.value: ": ping\n", MessageType.CONFIRM_SUBSCRIPTION.value: ":\n"}

_LINE_BREAK: Final = re.compile("\r\n|\r|\n")
_EVENT_NAME: Final = re.compile(r"[^\r\n\0]{1,100}")
#: The event types that a message cannot set. If a whisper could set them, it could look like an event from the server
#: or the browser.
RESERVED_EVENTS: Final = (*(str(each) for each in MessageType), "open", "error")


class Event(Frame):
    """A server-sent event for a reader that uses GET.

    As a string, an event is the text of its fields without the id.
    """

    __slots__ = ("_head", "epoch", "has_id", "identifier", "kind", "offset", "stream_id")

    added = MAX_ID_SIZE

    #: Whether the field `data` contains only the message. If False, the field contains the same JSON text as a
    #: WebSocket frame.
    unwrapped: ClassVar = True
    #: Whether the reader requests messages only (`raw=1`).
    raw: ClassVar = False

    _head: bytes
    #: The type of the frame; `""` for messages.
    kind: str
    #: The identifier of the subscription; `""` for events without one, such as pings.
    identifier: str
    #: The stream id of a broadcast; `""` for anything else.
    stream_id: str
    epoch: str
    offset: int
    #: Whether the event has an id that was made for one reader.
    has_id: bool

    @classmethod
    def make(
        cls, text: str, *, kind: str = "", identifier: str = "", stream_id: str = "", epoch: str = "", offset: int = 0
    ) -> Self:
        """Return an event with these attributes, and with `text` as its fields."""
        event = cls(text)
        event.kind, event.identifier = kind, identifier
        event.stream_id, event.epoch, event.offset = stream_id, epoch, offset
        event.has_id = False
        return event

    def _encode_frame(self) -> bytes:
        id_ = one_stream_id(self.stream_id, StreamPosition(self.epoch, self.offset)) if self.stream_id else ""
        return self._encode_with(id_)

    def _encode_with(self, id_: str) -> bytes:
        try:
            head = self._head
        except AttributeError:
            head = self._head = self.encode(errors="replace")
        return head + (f"id: {id_}\n\n" if id_ else "\n").encode(errors="replace")

    def with_id(self, id_: str) -> Self:
        """Return an event with the same text and with an id. The text is not encoded again."""
        event = self.make(self, kind=self.kind, identifier=self.identifier)
        event._wire = self._encode_with(id_)
        event.has_id = bool(id_)
        return event

    @property
    def shown(self) -> bool:
        """Whether the event has a field or an id. An event that has neither is not sent."""
        return bool(self) or self.has_id

    @classmethod
    def broadcasts(cls, identifier: str, stream_id: str, epoch: str) -> Callable[[int, str], Self]:
        """Return a function that makes the events for a stream's broadcasts, see `messages.broadcast_encoder`."""
        encode = messages.broadcast_encoder(identifier, stream_id, epoch)

        def fields(offset: int, data: str) -> str:
            return _message_fields(data) if cls.unwrapped else _fields(encode(offset, data))

        return lambda offset, data: cls.make(
            fields(offset, data), identifier=identifier, stream_id=stream_id, epoch=epoch, offset=offset
        )

    @classmethod
    def transmission(cls, identifier: str, data: str) -> Self:
        """Return the event of a message without a position, see `messages.transmission`."""
        text = _message_fields(data) if cls.unwrapped else _fields(messages.transmission(identifier, data))
        return cls.make(text, identifier=identifier)

    @classmethod
    def presence_event(cls, identifier: str, message: str) -> Self:
        """Return the event of a presence message, see `messages.presence_event`."""
        return cls._typed(MessageType.PRESENCE, messages.presence_event(identifier, message), identifier)

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the event for the text of a frame."""
        if isinstance(text, cls):
            return text
        frame: dict[str, Any] = json.loads(text)
        kind, identifier = frame.get("type", ""), frame.get("identifier", "")
        if kind:
            event = cls._typed(kind, text, identifier)
            if kind == MessageType.DISCONNECT and not frame["reconnect"]:
                return cls.make(f"{event}retry: {NEVER}\n", kind=kind)
            return event
        return cls.transmission(identifier, messages.dumps(frame["message"]))

    @classmethod
    def _typed(cls, kind: str, text: str, identifier: str) -> Self:
        if cls.raw and kind not in _NEVER_HIDDEN:
            fields = _RAW_COMMENTS.get(kind, "")
        else:
            fields = f"event: {kind}\ndata: {text}\n"
        return cls.make(fields, kind=kind, identifier=identifier)


class RawEvent(Event):
    """An event for a reader that uses GET, and requests messages only (`raw=1`)."""

    __slots__ = ()
    raw = True


class FrameEvent(Event):
    """An event for a reader that uses POST. Its data is the JSON text of a WebSocket frame."""

    __slots__ = ()
    unwrapped = False


class RawFrameEvent(FrameEvent):
    """An event for a reader that uses POST, and requests messages only (`raw=1`)."""

    __slots__ = ()
    raw = True


def _fields(text: str) -> str:
    """Return the field `data`, with one line for each line of the text."""
    if "\n" in text or "\r" in text:
        text = _LINE_BREAK.sub("\ndata: ", text)
    return f"data: {text}\n"


def _message_fields(data: str) -> str:
    """Return the fields of the event for a message.

    If the message is a JSON string, the field `data` contains its text without quotes.
    """
    if data.startswith('"'):
        return _fields(json.loads(data))
    if EVENT not in data or not data.startswith("{"):
        return _fields(data)
    message = json.loads(data)
    name = message.get(EVENT)
    if message.keys() != {EVENT, "data"} or not isinstance(name, str) or not _EVENT_NAME.fullmatch(name):
        return _fields(data)
    if name in RESERVED_EVENTS:
        return _fields(data)
    content = message["data"]
    return f"event: {name}\n" + _fields(content if isinstance(content, str) else messages.dumps(content))
