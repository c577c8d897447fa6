"""Reads the numbered events of presence from the database."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db.models import Max, Q, QuerySet

from reliable_cable.models import PresenceEntry, PresenceStream
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.database.database import Database
from reliable_cable.stores.streams.base import NOWHERE

from .model_changes import KEYS_PER_QUERY, Announcement

#: The maximum number of streams whose new events one query reads.
STREAMS_PER_READ: Final = 100
#: If a stream has more new events than this, they are not read one by one. The receiver reads the members instead.
MAX_NEW_EVENTS: Final = 1000


@dataclass(frozen=True, slots=True)
class NewEvents:
    """The result of a read of a stream's events.

    Args:
        position: the incarnation, and the number of the newest event.
        events: the events since the given position; None if some of them are no longer stored, if there are more than
            `MAX_NEW_EVENTS`, or if the position belongs to another incarnation.
    """

    position: StreamPosition
    events: Sequence[Announcement] | None


class EventReader:
    """Reads the events of streams, and the positions of the newest ones.

    Args:
        database: the database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def newest(self) -> int:
        """Return the highest id of an event in the database; 0 if there is none."""
        return self._database.rows(PresenceEntry).aggregate(newest=Max("pk"))["newest"] or 0

    def positions(self, streams: Collection[str]) -> dict[str, StreamPosition]:
        """Return the incarnation and the number of the newest event of streams, by name."""
        return {
            name: StreamPosition(incarnation, tail)
            for rows in self._by_names(streams)
            for name, incarnation, tail in rows.values_list("name", "incarnation", "tail")
        }

    def read(self, positions: Mapping[str, StreamPosition]) -> dict[str, NewEvents]:
        """Return the events of each stream after its position in `positions`. Leave out streams without a row."""
        found: dict[str, NewEvents] = {}
        rows = [row for some in self._by_names(positions) for row in some]
        wanted = [row for row in rows if 0 < row.tail - _start(row, positions) <= MAX_NEW_EVENTS]
        events = self._read_entries(wanted, positions)
        for row in rows:
            start = _start(row, positions)
            entries = [entry for entry in events[row.pk] if entry.number <= row.tail]
            complete = start <= row.tail and [entry.number for entry in entries] == list(range(start + 1, row.tail + 1))
            found[row.name] = NewEvents(StreamPosition(row.incarnation, row.tail), entries if complete else None)
        return found

    def _read_entries(
        self, rows: Sequence[PresenceStream], positions: Mapping[str, StreamPosition]
    ) -> dict[int, list[Announcement]]:
        events: dict[int, list[Announcement]] = defaultdict(list)
        streams = {row.pk: row for row in rows}
        for start in range(0, len(rows), STREAMS_PER_READ):
            condition = Q()
            for row in rows[start : start + STREAMS_PER_READ]:
                condition |= Q(stream=row.pk, number__gt=_start(row, positions))
            entries = self._database.rows(PresenceEntry).filter(condition).order_by("stream", "number")
            for pk, number, type_, member, info in entries.values_list("stream", "number", "type", "member", "info"):
                row = streams[pk]
                kind: Any = type_
                events[pk].append(Announcement(row.name, row.incarnation, number, kind, member, info))
        return events

    def _by_names(self, streams: Iterable[str]) -> Iterator[QuerySet[PresenceStream]]:
        """Yield queries for the rows of streams. Each query is for up to `KEYS_PER_QUERY` streams."""
        names = list(streams)
        for start in range(0, len(names), KEYS_PER_QUERY):
            yield self._database.rows(PresenceStream).filter(name__in=names[start : start + KEYS_PER_QUERY])


def _start(row: PresenceStream, positions: Mapping[str, StreamPosition]) -> int:
    """Return the number of the last event that a listener knows; 0 if it knows none, -1 for another incarnation."""
    position = positions[row.name]
    if position == NOWHERE:
        return 0
    return position.offset if position.epoch == row.incarnation else -1
