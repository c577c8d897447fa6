"""Numbers the messages of the model store, both new messages and messages in its outbox, while streams are locked."""

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from django.db.models import Exists, OuterRef

from reliable_cable.conf import CableSettings
from reliable_cable.models import OutboxEntry, Stream, StreamEntry
from reliable_cable.protocol.positions import StreamPosition, is_later_epoch
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.database.database import ROWS_PER_TRANSACTION, Database
from reliable_cable.stores.database.server import DatabaseServer

from .base import Advanced, Message, Published, StreamEvent
from .model_retention import Retention

#: The columns of a stream's row that change when entries are added.
CHANGING = ("epoch", "tail", "tail_at", "lineage")


@dataclass(frozen=True, slots=True)
class Written:
    """The result of `Numbering.write`.

    Args:
        positions: the positions of the caller's messages.
        events: the events to announce after the commit.
        overfull: the names of the streams to trim.
        complete: whether the caller's messages were stored. If False, the transaction has only ended epochs or numbered
            rows of the outbox, and the caller must call `write` again in another transaction.
    """

    positions: list[StreamPosition]
    events: list[StreamEvent]
    overfull: Collection[str]
    complete: bool


class Numbering:
    """Numbers messages and inserts them as entries.

    `write` and `create` must be called inside transactions.
    """

    def __init__(
        self, database: Database, settings: CableSettings, server: DatabaseServer, retention: Retention
    ) -> None:
        self._database = database
        self._settings = settings
        self._server = server
        self._retention = retention

    def pending(self, names: Collection[str] | None = None) -> list[str]:
        """Return the names of up to `ROWS_PER_TRANSACTION` streams that have messages in the outbox.

        Args:
            names: the names of the streams to look for; None for all streams.
        """
        rows = self._database.rows(OutboxEntry)
        if names is not None:
            rows = rows.filter(name__in=names)
        return list(rows.order_by("name").values_list("name", flat=True).distinct()[:ROWS_PER_TRANSACTION])

    def create(self, names: Sequence[str]) -> None:
        """Insert a row for each of the named streams that has none."""
        rows = [Stream(name=name, epoch=secrets.token_hex(8)) for name in names]
        self._database.rows(Stream).bulk_create(rows, ignore_conflicts=True)

    def write(self, names: Sequence[str], items: Sequence[tuple[str, Message]]) -> Written | None:
        """Lock streams, number their messages in the outbox, then store `items`. Return None if a stream has no row.

        If the database may have lost messages of some streams, because their epochs began before a failover or a
        restored backup, these streams are deleted, and nothing is stored. In this case, the result is not `complete`.

        Args:
            names: the names of the streams to lock.
            items: pairs of a stream's name and a message.
        """
        outbox = OutboxEntry.objects.filter(name=OuterRef("name"))
        locked = self._database.rows(Stream).select_for_update().filter(name__in=names).order_by("name")
        streams: dict[str, Stream] = {}
        with_outbox: list[str] = []
        ended: list[str] = []
        now = 0.0
        for stream in locked.annotate(
            waits=Exists(outbox),
            now=self._server.now(),
            present=self._server.lineage(),
            ended=self._server.is_foreign("lineage"),
        ):
            streams[stream.name] = stream
            now = max(now, stream.now)
            if stream.waits:
                with_outbox.append(stream.name)
            if stream.tail == 0 and not is_later_epoch(stream.epoch):
                # The first entry begins a new epoch. If a backup was restored, the old epoch may have had entries that
                # the backup lacks.
                stream.epoch = secrets.token_hex(8)
            elif stream.ended:
                ended.append(stream.name)
            stream.lineage = stream.present or stream.lineage
        if len(streams) < len(names):
            return None
        if ended:
            # The database may have lost entries of these epochs. The offsets of the lost entries must not be used
            # again.
            self._database.rows(Stream).filter(name__in=ended).delete()
            return Written([], [Advanced(name) for name in ended], (), complete=False)
        rows = []
        if with_outbox:
            # The rows are read under the lock, because another process deletes the rows that it has numbered.
            outbox = self._database.rows(OutboxEntry).filter(name__in=with_outbox)
            rows = list(outbox.order_by("id")[:ROWS_PER_TRANSACTION])
        complete = len(rows) < ROWS_PER_TRANSACTION
        batch = [(row.name, Message(row.data, row.exclude, row.idempotency_key)) for row in rows]
        tails = {name: stream.tail for name, stream in streams.items()}
        overfull = {
            stream.name
            for stream in streams.values()
            if self._retention.has_expired(stream.name, stream.low, stream.tail, stream.tail_at, now)
        }
        positions, events = self.insert(streams, [*batch, *items] if complete else batch, now)
        if rows:
            self._database.rows(OutboxEntry).filter(pk__in=[row.pk for row in rows]).delete()
        overfull |= {
            name
            for name, old_tail in tails.items()
            if self._retention.has_grown(name, streams[name].low, streams[name].tail, old_tail)
        }
        return Written(positions[len(rows) :], events, overfull, complete)

    def insert(
        self, streams: Mapping[str, Stream], items: Sequence[tuple[str, Message]], now: float
    ) -> tuple[list[StreamPosition], list[StreamEvent]]:
        """Insert messages as entries. Return the positions of the messages, and the events to announce.

        If an entry of the stream within the history size and TTL, or an earlier item for it, has the same idempotency
        key as a message, the message is not inserted, and its position is that of the entry or item. An `Advanced`
        event then announces the stream again, because the process that has stored the entry may have ended before it
        could announce it.

        Args:
            streams: the locked rows of the streams, by name. Their tails are updated.
            items: pairs of a stream's name and a message.
            now: the current time, in seconds since 1970.
        """
        repeats = self._repeats(streams, items, now)
        positions: list[StreamPosition] = []
        entries: list[StreamEntry] = []
        events: list[StreamEvent] = []
        repeated: list[str] = []
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
                events.append(Published(name, stream.epoch, Entry(offset, message.data, message.exclude)))
                if key:
                    repeats[name, key] = offset
            else:
                repeated.append(name)
            positions.append(StreamPosition(stream.epoch, offset))
        if entries:
            self._database.rows(StreamEntry).bulk_create(entries)
            changed = [streams[name] for name in sorted({event.stream for event in events})]
            if len(changed) == 1:
                values = {field: getattr(changed[0], field) for field in CHANGING}
                self._database.rows(Stream).filter(pk=changed[0].pk).update(**values)
            else:
                self._database.rows(Stream).bulk_update(changed, CHANGING)
        return positions, [*events, *map(Advanced, dict.fromkeys(repeated))]

    def _repeats(
        self, streams: Mapping[str, Stream], items: Iterable[tuple[str, Message]], now: float
    ) -> dict[tuple[str, str], int]:
        """Return the offsets of the stored entries with the same idempotency keys as the items, by (stream, key)."""
        keys = {message.idempotency_key for _, message in items if message.idempotency_key}
        if not keys:
            return {}
        names = {stream.pk: name for name, stream in streams.items()}
        repeats: dict[tuple[str, str], int] = {}
        expired: list[int] = []
        entries = self._database.rows(StreamEntry).filter(stream__in=list(names), idempotency_key__in=keys)
        for pk, stream, offset, key, created in entries.values_list(
            "pk", "stream_id", "offset", "idempotency_key", "created"
        ):
            name = names[stream]
            policy = self._settings.policy(name)
            if created <= now - policy.history_ttl or offset <= streams[name].tail - policy.history_size:
                expired.append(pk)
            elif key is not None:
                repeats[name, key] = offset
        if expired:
            # These entries are beyond the history size or TTL, but have not been trimmed yet. Their keys can be reused.
            self._database.rows(StreamEntry).filter(pk__in=expired).update(idempotency_key=None)
        return repeats
