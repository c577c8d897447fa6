"""Decides when the new pieces of an answer are broadcast, and joins them into few events.

This module does no I/O, and has no clock.
"""

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, cast

from . import events
from .parts import REASONING

#: The default maximum number of characters in an event. In JSON, a character has at most 12 bytes.
MAX_CHUNK: Final = 16 * 1024


class Coalescer:
    """Collects the pieces of text and the parts that a task writes, and joins them into few events.

    One thread may call `add` while another thread calls `take`.

    Args:
        attempt: the number of the attempt, which each event contains.
        interval: the shortest time between two broadcasts, in seconds.
        max_length: the number of collected characters of text after which a broadcast does not wait for the interval.
        max_chunk: the maximum number of characters in an event. Longer text, such as that collected during an outage,
            is split.
    """

    __slots__ = (
        "_attempt",
        "_interval",
        "_is_expecting",
        "_length",
        "_lock",
        "_max_chunk",
        "_max_length",
        "_taken_at",
        "_written",
    )

    def __init__(
        self, attempt: int, interval: float = 0.03, max_length: int = 2048, max_chunk: int = MAX_CHUNK
    ) -> None:
        self._attempt = attempt
        self._interval = interval
        self._max_length = max_length
        self._max_chunk = max_chunk
        #: The pieces of text and the parts that `take` has not handled yet, in the order in which they were written.
        self._written: list[str | Mapping[str, Any]] = []
        self._length = 0
        self._lock = threading.Lock()
        self._taken_at = -math.inf
        #: Whether `due` returns the end of the interval even if nothing is written. The thread that calls `take` then
        #: need not be woken for the first piece, which saves CPU time while a model writes quickly.
        self._is_expecting = False

    def add(self, item: str | Mapping[str, Any]) -> bool:
        """Add a piece of text or a part.

        Returns:
            Whether the next broadcast is due earlier than before this call.
        """
        with self._lock:
            self._written.append(item)
            before = self._length
            self._length += len(item) if isinstance(item, str) else 0
            is_first = len(self._written) == 1 and not self._is_expecting
            return is_first or before < self._max_length <= self._length

    def due(self) -> float:
        """Return the time at which the next broadcast is due, by the same clock as the argument `now` of `take`.

        The time is infinity if there is nothing to broadcast, and minus infinity if the broadcast must not wait. After
        a call of `take` that returned events, it is finite even if nothing has been written since then.
        """
        if not self._written and not self._is_expecting:
            return math.inf
        return -math.inf if self._length >= self._max_length else self._taken_at + self._interval

    def take(self, now: float) -> Sequence[dict[str, Any]]:
        """Return the events for all pieces of text and all parts that were added since the last call.

        Args:
            now: the current time, in seconds, by any monotonic clock.
        """
        with self._lock:
            written, self._written = self._written, []
            self._length = 0
            self._is_expecting = bool(written)
        if not written:
            return ()
        self._taken_at = now
        return [
            events.chunk(self._attempt, item) if isinstance(item, str) else events.part(self._attempt, item)
            for item in _split(_joined(written), self._max_chunk)
        ]


def _joined(written: Sequence[str | Mapping[str, Any]]) -> Sequence[str | Mapping[str, Any]]:
    """Return pieces of text and parts, after joining adjacent pieces of text and adjacent pieces of reasoning."""
    joined: list[str | Mapping[str, Any]] = []
    # A model writes many pieces of text, so these are joined without a Python loop.
    for kind, items in groupby(written, type):
        if issubclass(kind, str):
            joined.append("".join(cast("Iterator[str]", items)))
        else:
            joined += _joined_reasoning(cast("Iterator[Mapping[str, Any]]", items))
    return joined


def _joined_reasoning(parts: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for is_reasoning, adjacent in groupby(parts, lambda part: part["type"] == REASONING):
        if is_reasoning:
            yield {"type": REASONING, "text": "".join(part["text"] for part in adjacent)}
        else:
            yield from adjacent


def _split(items: Sequence[str | Mapping[str, Any]], size: int) -> Iterator[str | Mapping[str, Any]]:
    """Yield pieces of text and parts, after splitting long text and long reasoning."""
    for item in items:
        if isinstance(item, str):
            yield from (item[begin : begin + size] for begin in range(0, len(item), size))
        elif item["type"] == REASONING:
            text = item["text"]
            yield from ({**item, "text": text[begin : begin + size]} for begin in range(0, len(text), size))
        else:
            yield item
