"""Finds the content that the writer of a run broadcast, but did not save, before the writer died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from reliable_cable.broadcasting import HistoryEntry, history
from reliable_cable.protocol.positions import PagePosition
from reliable_cable.validation import resolve_stream

from . import events
from .parts import Content

#: The number of events that are read at once.
PAGE_SIZE: Final = 1000


def complete_content(
    stream: str, attempt: int, saved_at: str, text: str, parts: Sequence[Mapping[str, Any]]
) -> Content:
    """Return the saved content of an attempt, together with the content of its later events, up to its end.

    Readers have received the broadcasts, so the run must contain them. If the stream no longer has all of them, this
    returns the saved content.

    Args:
        stream: the name of the stream of the run, without its namespace.
        attempt: the number of the attempt.
        saved_at: the position on the stream up to which the content was saved, as `str(PagePosition)`.
        text: the saved text.
        parts: the saved parts.

    Raises:
        StoreError: the stream could not be read.
    """
    saved = Content(text, [dict(part) for part in parts])
    position = PagePosition.parse(saved_at, resolve_stream(stream))
    if position is None:
        return saved
    content = Content(text, [dict(part) for part in parts])
    offset = position.offset
    while entries := history(stream, limit=PAGE_SIZE, after=offset):
        for entry in entries:
            offset += 1
            if not _follows(entry, position, offset):
                return saved
            if entry.data["attempt"] != attempt:
                continue
            if entry.data["event"] in events.ENDS:
                return content  # readers ignore later events
            item = events.content_of(entry.data)
            if item is not None:
                content.add(item)
    return content


def _follows(entry: HistoryEntry, position: PagePosition, offset: int) -> bool:
    return entry.position.offset == offset and position.epoch in ("", entry.position.epoch)
