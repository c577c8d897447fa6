"""The text of the notifications by which processes with the same database announce events to each other.

A notification is signed, because every role that may connect to a PostgreSQL database may also send notifications.
"""

import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.utils.crypto import salted_hmac

from reliable_cable.conf import CableSettings
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.database.notify import MAX_PAYLOAD

from .base import Advanced, Published, Transient

#: The number of hexadecimal digits of a signature.
_SIGNATURE_SIZE: Final = 24
#: The maximum number of payloads for the events that are sent at a time. If the events need more, only the newest
#: position of each stream is sent. If these positions need more, too, only a request to poll is sent.
MAX_PAYLOADS: Final = 32


@dataclass(frozen=True, slots=True)
class Moved:
    """The event for a stream that has new messages up to a position. The receiver must read the stream."""

    stream: str
    position: StreamPosition


@dataclass(frozen=True, slots=True)
class StoredTransient:
    """A transient message with the id of its row.

    Args:
        pk: the primary key of the row in `TransientEntry`.
        message: the message.
    """

    pk: int
    message: Transient

    @property
    def stream(self) -> str:
        """The name of the stream."""
        return self.message.stream


NoticedEvent = Published | Moved | Advanced | StoredTransient


@dataclass(frozen=True, slots=True)
class Notice:
    """The content of a notification.

    Args:
        origin: the name of the store that has announced the events; `""` if the receiver does not know it.
        events: the events.
        look: whether the receiver must poll the database, because there are events that are not in the notification.
    """

    origin: str
    events: Sequence[NoticedEvent] = ()
    look: bool = False


#: What `NoticeCodec.decode` returns for a payload that cannot be read: a request to poll.
UNREADABLE: Final = Notice("", look=True)


class NoticeCodec:
    """Converts events to the payloads of notifications, and back.

    A payload is the topic, a signature, a JSON array in one line, and then the data of all messages.

    Args:
        settings: the settings; `secret` is used.
        topic: the beginning of all payloads (see `SharedReceiver`).
    """

    def __init__(self, settings: CableSettings, topic: str = "") -> None:
        self._topic = topic
        self._key = salted_hmac("reliable_cable", "notify", secret=settings.secret, algorithm="sha256").digest()

    def encode(self, notice: Notice) -> list[str]:
        """Return the payloads for a notice.

        A message that is too large is announced by its position. If it is transient, a request to poll is sent instead.
        """
        payloads = [self._payload(notice.origin, *batch) for batch in _batches(notice)]
        if len(payloads) > MAX_PAYLOADS:
            shorter = Notice(notice.origin, _newest_positions(notice.events), look=True)
            payloads = [self._payload(notice.origin, *batch) for batch in _batches(shorter)]
        if len(payloads) > MAX_PAYLOADS:
            payloads = [self._payload(notice.origin, [["l"]], "")]
        return payloads

    def decode(self, payload: str) -> Notice:
        """Return the notice in a payload.

        A payload that cannot be read, for example because another project has sent it, is a request to poll.
        """
        payload = payload.removeprefix(self._topic)
        signature, text = payload[:_SIGNATURE_SIZE], payload[_SIGNATURE_SIZE:]
        # The digests are compared as bytes, because `compare_digest` refuses strings that are not ASCII.
        if not hmac.compare_digest(signature.encode(), self._sign(text).encode()):
            return UNREADABLE
        head, _, data = text.partition("\n")
        try:
            origin, items = json.loads(head)
            events, look = _decode_items(items, data)
        except (ValueError, TypeError, LookupError):
            return UNREADABLE
        return Notice(origin, events, look)

    def _payload(self, origin: str, items: list[Any], data: str) -> str:
        text = f"{_dumps([origin, items])}\n{data}"
        return self._topic + self._sign(text) + text

    def _sign(self, text: str) -> str:
        return hashlib.blake2b(text.encode(), key=self._key, digest_size=_SIGNATURE_SIZE // 2).hexdigest()


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _encode_event(event: NoticedEvent) -> tuple[list[Any], str]:
    """Return the item for an event, and the data of its message. The item contains the length of the data."""
    match event:
        case Published(stream, epoch, entry):
            return ["p", stream, epoch, entry.offset, entry.exclude, len(entry.data)], entry.data
        case StoredTransient(pk, message):
            kind = "w" if message.whisper else "t"
            return [kind, message.stream, pk, message.exclude, len(message.data)], message.data
        case Moved(stream, position):
            return ["m", stream, position.epoch, position.offset], ""
        case Advanced(stream):
            return ["a", stream], ""


def _without_data(event: NoticedEvent) -> list[Any]:
    """Return the item for an event whose message is too large for a notification."""
    if isinstance(event, Published):
        return _encode_event(Moved(event.stream, event.position))[0]
    return ["l"]


def _batches(notice: Notice) -> Iterator[tuple[list[Any], str]]:
    """Yield batches of items, each with the data of its items. Each batch fits into one payload."""
    room = MAX_PAYLOAD - _SIGNATURE_SIZE - len(_dumps([notice.origin, []])) - 1
    items: list[Any] = [["l"]] if notice.look else []
    texts: list[str] = []
    size = len('["l"],') * len(items)
    for event in notice.events:
        item, data = _encode_event(event)
        needed = len(_dumps(item).encode()) + 1 + len(data.encode())
        if needed > room:
            item, data = _without_data(event), ""
            needed = len(_dumps(item).encode()) + 1
        if size + needed > room:
            yield items, "".join(texts)
            items, texts, size = [], [], 0
        items.append(item)
        texts.append(data)
        size += needed
    if items:
        yield items, "".join(texts)


def _newest_positions(events: Sequence[NoticedEvent]) -> list[NoticedEvent]:
    """Return one event for each stream that has new messages. Transient messages are left out."""
    newest: dict[str, NoticedEvent] = {}
    for event in events:
        if isinstance(event, Published):
            newest[event.stream] = Moved(event.stream, event.position)
        elif not isinstance(event, StoredTransient):
            newest[event.stream] = event
    return list(newest.values())


def _decode_items(items: Sequence[Any], data: str) -> tuple[list[NoticedEvent], bool]:
    """Return the events in a payload, and whether its receiver must poll.

    The receiver must also poll if another release has sent an item of an unknown kind. The items after it are left out,
    because the size of its data is unknown.
    """
    events: list[NoticedEvent] = []
    look = False
    start = 0

    def take(size: int) -> str:
        nonlocal start
        start += size
        return data[start - size : start]

    for item in items:
        match item:
            case ["p", stream, epoch, offset, exclude, size]:
                events.append(Published(stream, epoch, Entry(offset, take(size), exclude)))
            case ["t" | "w" as kind, stream, pk, exclude, size]:
                events.append(StoredTransient(pk, Transient(stream, take(size), exclude, whisper=kind == "w")))
            case ["m", stream, epoch, offset]:
                events.append(Moved(stream, StreamPosition(epoch, offset)))
            case ["a", stream]:
                events.append(Advanced(stream))
            case ["l"]:
                look = True
            case _:
                return events, True
    return events, look
