"""Numbers the messages of the model store, under locks on their streams."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reliable_cable.conf import CableSettings
from reliable_cable.models import Stream, StreamEntry
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.stores.database.database import Database

from .base import Message, Published, StreamEvent

#: The columns of a stream's row that change when it gets entries.
CHANGING = ("epoch", "tail", "tail_at", "lineage")


class Numbering:
    """Inserts messages as numbered entries. Call it inside a transaction that has locked the rows of their streams."""

    def __init__(self, database: Database, settings: CableSettings) -> None:
        self._database = database
        self._settings = settings

    def insert(
        self, streams: Mapping[str, Stream], items: Sequence[tuple[str, Message]], now: float
    ) -> tuple[list[StreamPosition], list[StreamEvent]]:
        """Insert messages, move the tails, and return the messages' positions and their announcements.

        A message with the idempotency key of a kept entry is not inserted again. Its position is that of the entry.

        Args:
            streams: the locked rows, by name; they are changed.
            items: the names of streams and the messages.
            now: the present time.
        """
        repeats = self._repeats(streams, items, now)
        positions: list[StreamPosition] = []
        entries: list[StreamEntry] = []
        events: list[StreamEvent] = []
        for name, message in items:
            stream = streams[name]
            key = message.idempotency_key or None
            offset = repeats.get((name, key)) if key else None
            if offset is None:
                offset = stream.tail = stream.tail + 1
                stream.tail_at = max(now, stream.tail_at)
                entry = StreamEntry(
                    stream=stream, offset=offset, data=message.data, exclude=message.exclude, created=stream.tail_at
                )
                entry.idempotency_key = key
                entries.append(entry)
                events.append(Published(name, stream.epoch, offset, message.data, message.exclude))
                if key:
                    repeats[name, key] = offset
            positions.append(StreamPosition(stream.epoch, offset))
        if entries:
            self._database.rows(StreamEntry).bulk_create(entries)
            changed = [streams[name] for name in sorted({event.stream for event in events})]
            if len(changed) == 1:
                values = {field: getattr(changed[0], field) for field in CHANGING}
                self._database.rows(Stream).filter(pk=changed[0].pk).update(**values)
            else:
                self._database.rows(Stream).bulk_update(changed, CHANGING)
        return positions, events

    def _repeats(
        self, streams: Mapping[str, Stream], items: Iterable[tuple[str, Message]], now: float
    ) -> dict[tuple[str, str], int]:
        """Return the offsets of kept entries that have one of the items' idempotency keys."""
        keys = {message.idempotency_key for _, message in items if message.idempotency_key}
        if not keys:
            return {}
        names = {stream.pk: name for name, stream in streams.items()}
        found: dict[tuple[str, str], int] = {}
        gone: list[int] = []
        entries = self._database.rows(StreamEntry).filter(stream__in=list(names), idempotency_key__in=keys)
        for pk, stream, offset, key, created in entries.values_list(
            "pk", "stream_id", "offset", "idempotency_key", "created"
        ):
            name = names[stream]
            policy = self._settings.policy(name)
            if created <= now - policy.history_ttl or offset <= streams[name].tail - policy.history_size:
                gone.append(pk)
            elif key is not None:
                found[name, key] = offset
        if gone:
            # These entries are past the stream's size or TTL, but not trimmed yet. Their keys can be used again.
            self._database.rows(StreamEntry).filter(pk__in=gone).update(idempotency_key=None)
        return found
