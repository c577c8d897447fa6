"""Encodes session records as JSON text for Redis, and finds the difference between two records of a session."""

import json
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from itertools import takewhile
from threading import Lock
from typing import Final, Self

from .base import SessionRecord

#: The maximum size, in bytes, of a record that is always written whole.
MAX_WHOLE_SIZE: Final = 4096

#: The maximum total size of the texts in `WrittenTexts`, in bytes.
MAX_WRITTEN_SIZE: Final = 8 * 1024 * 1024

_VERSION_BITS: Final = 48


def encode(record: SessionRecord) -> str:
    """Encode a record as JSON text, which all releases can read.

    Raises:
        TypeError: the record is not JSON.
    """
    return json.dumps([dict(record.identity), record.authenticated, record.data])


@dataclass(frozen=True, slots=True)
class TextChange:
    """The difference between an old text and a new one.

    The new text consists of four parts: the beginning of the old text, `inserted`, a later part of the old text, and
    `end`.

    Args:
        kept: the number of bytes that are used from the beginning of the old text.
        inserted: the new text after this beginning.
        resumed: the position of the first byte of the later part in the old text, counted from 1.
        ended: the position of the last byte of the later part in the old text, counted from 1.
        end: the new text after the later part.
    """

    kept: int
    inserted: str
    resumed: int
    ended: int
    end: str


@dataclass(frozen=True, slots=True)
class RecordText:
    """The JSON text of a record, in parts.

    Args:
        parts: the beginning of the text, which contains all lists. Each item of a list is a part.
        values: the text after `parts`, which contains all values that are not lists. It is always written whole.
        version: a random string that identifies the record. It consists of white space, which JSON decoders ignore.
    """

    parts: tuple[str, ...]
    values: str
    version: str

    @classmethod
    def of(cls, record: SessionRecord) -> Self:
        """Encode a record.

        Raises:
            TypeError: the record is not JSON.
        """
        parts = [f"[{json.dumps(dict(record.identity))}, {json.dumps(record.authenticated)}, {{"]
        values = {}
        separator = ""
        for key, value in record.data.items():
            if not isinstance(value, list):
                values[key] = value
                continue
            parts.append(f"{separator}{json.dumps(key)}: [")
            parts += [f"{', ' if index else ''}{json.dumps(item)}" for index, item in enumerate(value)]
            parts.append("]")
            separator = ", "
        end = f"{separator if values else ''}{json.dumps(values)[1:]}]"
        version = f"{secrets.randbits(_VERSION_BITS):0{_VERSION_BITS}b}".translate({ord("0"): " ", ord("1"): "\t"})
        return cls(tuple(parts), end, version)

    def __str__(self) -> str:
        return f"{''.join(self.parts)}{self.values}{self.version}"

    @property
    def size(self) -> int:
        """The size of the text, in bytes. The text is ASCII."""
        return sum(map(len, self.parts)) + len(self.values) + len(self.version)

    def change_from(self, old: "RecordText") -> TextChange:
        """Return the difference between an older text and this one."""
        same = _count_equal(self.parts, old.parts)
        rest, old_rest = self.parts[same:], old.parts[same:]
        same_last = _count_equal(rest[::-1], old_rest[::-1])
        kept = sum(map(len, self.parts[:same]))
        ended = sum(map(len, old.parts))
        resumed = ended - sum(map(len, rest[len(rest) - same_last :])) + 1
        return TextChange(kept, "".join(rest[: len(rest) - same_last]), resumed, ended, f"{self.values}{self.version}")


def _count_equal(parts: tuple[str, ...], others: tuple[str, ...]) -> int:
    """Return the number of equal parts before the first difference between two texts."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, others, strict=False)))


class WrittenTexts:
    """The large texts that this process wrote last.

    A new text is compared with them, so that only the difference is written. If the texts have more than
    `MAX_WRITTEN_SIZE` bytes in total, the oldest ones are forgotten. All methods are thread-safe.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._texts: OrderedDict[str, RecordText] = OrderedDict()
        self._size = 0

    def get(self, sid: str) -> RecordText | None:
        """Return the text that this process wrote last for a session; None if it is unknown."""
        return self._texts.get(sid)

    def add(self, sid: str, text: RecordText) -> None:
        """Remember a text that was written for a session."""
        with self._lock:
            self._remove(sid)
            self._texts[sid] = text
            self._size += text.size
            while self._size > MAX_WRITTEN_SIZE:
                self._remove(next(iter(self._texts)))

    def forget(self, sid: str) -> None:
        """Forget the text of a session, so that its next record is written whole."""
        with self._lock:
            self._remove(sid)

    def _remove(self, sid: str) -> None:
        text = self._texts.pop(sid, None)
        if text is not None:
            self._size -= text.size
