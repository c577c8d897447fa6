"""Divides large session records into a head and parts, which are rows in a database.

Each item of the record's largest list is a part, and the head contains all other data. So if an item changes, only the
head and the row of this item are written. A small record is stored in one row.
"""

import json
import secrets
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Final, Self

from .base import SessionRecord

#: Records of up to this size, in bytes, are stored in one row. Larger records are divided if they contain a list
#: with items. A divided record that becomes smaller may stay divided.
MAX_WHOLE_SIZE: Final = 4096

#: The difference between the numbers of two successive parts of a new record. Parts that are inserted later get numbers
#: in between.
STRIDE: Final = 1 << 20

#: The maximum number of parts of one record in a DELETE. If more parts must be deleted, all parts are written again.
#: The number is limited, because a DELETE may name parts of many records, and SQLite limits a statement's parameters.
MAX_REMOVED: Final = 100

#: The approximate maximum size of `KnownParts` in memory, in bytes.
MAX_KNOWN_SIZE: Final = 8 * 1024 * 1024

#: The approximate size of a record in `KnownParts`, in bytes. Each part adds 16 bytes.
_RECORD_SIZE: Final = 512

#: The key under which a head contains the key of the list, the number of parts and a version. The data of a record must
#: not have this key.
_PARTS_KEY: Final = "parts"


@dataclass(frozen=True, slots=True)
class RecordParts:
    """A large record as JSON texts.

    Args:
        list_key: the key of the list whose items are the parts.
        head: all other data. Servers of the previous release read this text as a record whose list is empty.
        items: the items of the list.
    """

    list_key: str
    head: str
    items: tuple[str, ...]

    @classmethod
    def of(cls, record: SessionRecord, list_key: str = "") -> Self | None:
        """Encode a record. Return None if it has neither a list with the key `list_key` nor a list with items.

        Args:
            record: the record to encode.
            list_key: the key of the list that was divided before. If the record has no list with this key, the largest
                list is used.

        Raises:
            TypeError: the record is not JSON.
        """
        lists = {key: tuple(map(json.dumps, value)) for key, value in record.data.items() if isinstance(value, list)}
        if list_key not in lists:
            list_key = max(lists, key=lambda key: sum(map(len, lists[key])), default="")
            if not lists.get(list_key):
                return None
        version = secrets.token_hex(8)  # so that each head of a session differs from all former heads
        layout = {_PARTS_KEY: [list_key, len(lists[list_key]), version]}
        return cls(list_key, json.dumps({**record.data, list_key: [], **layout}), lists[list_key])


def join(head: str, items: Sequence[str]) -> dict[str, Any] | None:
    """Return the data of a record; None if parts are missing.

    Args:
        head: the text of a head, or of a record that is stored in one row.
        items: the texts of the stored parts, in the order of their numbers. If `head` is a whole record, the parts
            belong to an older record, and are ignored.
    """
    data: dict[str, Any] = json.loads(head)
    layout = data.pop(_PARTS_KEY, None)
    if layout is not None:
        list_key, count, _ = layout
        if count != len(items):
            return None
        data[list_key] = [json.loads(item) for item in items]
    return data


@dataclass(frozen=True, slots=True)
class PartsChange:
    """The difference between stored parts and new parts.

    Args:
        whole: whether all stored parts must be deleted first.
        written: the texts of the parts that must be written, by number.
        removed: the numbers of the parts that must be deleted if `whole` is False.
        hashes: the hash values of all new parts, by number, in the order of the numbers.
    """

    whole: bool
    written: Mapping[int, str]
    removed: Sequence[int]
    hashes: Mapping[int, int]

    @classmethod
    def between(cls, old: Mapping[int, int] | None, items: Sequence[str]) -> Self:
        """Compare stored parts with new parts. A part that has not changed keeps its number if possible.

        Args:
            old: the hash values of the stored parts, by number, in the order of the numbers; None if they are unknown.
            items: the texts of the new parts.
        """
        hashes = [hash(item) for item in items]
        numbers = _number(old, hashes) if old is not None else None
        if old is not None and numbers is not None:
            new = dict(zip(numbers, hashes, strict=True))
            removed = [number for number in old if number not in new]
            if len(removed) <= MAX_REMOVED:
                texts = zip(numbers, items, strict=True)
                return cls(
                    False, {number: item for number, item in texts if old.get(number) != new[number]}, removed, new
                )
        numbers = [STRIDE * index for index in range(1, len(items) + 1)]
        written = dict(zip(numbers, items, strict=True))
        return cls(True, written, [], dict(zip(numbers, hashes, strict=True)))


def _number(old: Mapping[int, int], hashes: Sequence[int]) -> list[int] | None:
    """Return numbers for new parts, in ascending order. A part that equals a stored part keeps its number if possible.

    Return None if there are too few free numbers between two parts that keep their numbers.
    """
    former = list(old)
    number_of = {old[number]: number for number in reversed(former)}
    numbers: list[int] = []
    last = unnumbered = 0
    for value in hashes:
        number = number_of.get(value, 0)
        if number <= last:
            unnumbered += 1
            continue
        between = _numbers_between(former, last, number, unnumbered)
        if between is None:
            return None
        numbers += [*between, number]
        last, unnumbered = number, 0
    free = former[bisect_right(former, last) :]
    end = free[-1] if free else last
    free += range(end + STRIDE, end + STRIDE * (unnumbered + 1), STRIDE)
    return numbers + free[:unnumbered]


def _numbers_between(former: Sequence[int], low: int, high: int, count: int) -> Sequence[int] | None:
    """Return `count` numbers between two numbers; None if there are too few numbers.

    If enough former parts have numbers in this range, their numbers are used, and these parts are replaced.
    """
    replaced = former[bisect_right(former, low) : bisect_left(former, high)]
    if len(replaced) >= count:
        return replaced[:count]
    if high - low <= count:
        return None
    return [low + (high - low) * index // (count + 1) for index in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class StoredParts:
    """The hash values of the head and the parts of a large record that this process has stored.

    Args:
        list_key: the key of the list whose items are the parts.
        head: the hash value of the head.
        numbers: the numbers of the parts, in ascending order.
        values: the hash value of each part.
    """

    list_key: str
    head: int
    numbers: Sequence[int]
    values: Sequence[int]

    @classmethod
    def of(cls, parts: RecordParts, hashes: Mapping[int, int]) -> Self:
        """Return the hash values of a record that was written.

        Args:
            parts: the record.
            hashes: the hash values of the parts, by number, in the order of the numbers.
        """
        return cls(parts.list_key, hash(parts.head), array("q", hashes), array("q", hashes.values()))

    @property
    def hashes(self) -> dict[int, int]:
        """The hash values of the parts, by number, in the order of the numbers."""
        return dict(zip(self.numbers, self.values, strict=True))

    @property
    def size(self) -> int:
        """The approximate size of this object in memory, in bytes."""
        return _RECORD_SIZE + 16 * len(self.numbers)


class KnownParts:
    """The hash values of the large records that this process stored last.

    They show which parts of a record have changed and must be written. If the hash values take more than
    `MAX_KNOWN_SIZE` bytes in total, those of the oldest records are forgotten. All methods are thread-safe.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._records: OrderedDict[str, StoredParts] = OrderedDict()
        self._size = 0

    def get(self, sid: str) -> StoredParts | None:
        """Return the hash values of a session's record; None if they are unknown."""
        return self._records.get(sid)

    def add(self, sid: str, stored: StoredParts) -> None:
        """Remember the hash values of a session's record."""
        with self._lock:
            self._remove(sid)
            self._records[sid] = stored
            self._size += stored.size
            while self._size > MAX_KNOWN_SIZE:
                self._remove(next(iter(self._records)))

    def forget(self, sid: str) -> None:
        """Forget the hash values of a session's record, so that all parts of its next record are written."""
        with self._lock:
            self._remove(sid)

    def _remove(self, sid: str) -> None:
        stored = self._records.pop(sid, None)
        if stored is not None:
            self._size -= stored.size
