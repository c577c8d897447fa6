"""The table by which processes with the same database exchange transient messages and whispers."""

from collections.abc import Callable, Sequence
from functools import partial

from django.db.models import Q
from django.db.models.expressions import Expression

from reliable_cable.exceptions import BroadcastError
from reliable_cable.models import TransientEntry
from reliable_cable.stores.database.database import Database
from reliable_cable.stores.database.server import DatabaseServer

from .base import Transient
from .model_notices import StoredTransient
from .model_polling import SeenIds
from .model_retention import Retention

#: The maximum number of ids of rows in a query.
IDS_PER_QUERY = 500
#: A process that sends transient messages also deletes the old ones of all processes. This is the minimum time, in
#: seconds, between two such deletions.
DELETE_INTERVAL = 10.0


class TransientTable:
    """Inserts transient messages, and finds those of other processes.

    Args:
        database: the database with the table.
        server: the server of the database, which reports the time.
        retention: the object that deletes old rows.
        origin: a function that returns the name of the store in this process.
        clock: a clock for the time between two deletions, in seconds.
    """

    def __init__(
        self,
        database: Database,
        server: DatabaseServer,
        retention: Retention,
        origin: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._server = server
        self._retention = retention
        self._origin = origin
        self._clock = clock
        self._deleted_at = 0.0

    def store(self, message: Transient) -> int:
        """Store a message in a transaction of its own, and return the id of its row.

        Raises:
            BroadcastError: the message was not stored.
            BroadcastUncertain: the connection broke during the commit.
        """

        def insert() -> int:
            row = self._row(message, self._server.now())
            row.save(using=self._database.alias, force_insert=True)
            return row.pk

        key = self._database.outside(partial(self._database.write_broadcast, insert), BroadcastError)
        self._delete_old()
        return key

    def store_whispers(self, whispers: Sequence[Transient]) -> list[int]:
        """Store whispers in a transaction, and return the ids of their rows.

        Raises:
            django.db.Error: the whispers were not stored.
        """
        keys = self._database.write_soon(partial(self._insert, whispers))
        self._delete_old()
        return keys

    def _insert(self, messages: Sequence[Transient]) -> list[int]:
        now = self._server.now()
        rows = self._database.rows(TransientEntry).bulk_create(self._row(message, now) for message in messages)
        return [row.pk for row in rows]

    def _row(self, message: Transient, now: Expression) -> TransientEntry:
        row = TransientEntry(
            name=message.stream,
            data=message.data,
            exclude=message.exclude,
            whisper=message.whisper,
            origin=self._origin(),
        )
        row.created = now
        return row

    def _delete_old(self) -> None:
        now = self._clock()
        if abs(now - self._deleted_at) > DELETE_INTERVAL:
            self._deleted_at = now
            self._database.delete_soon(self._retention.delete_transients)

    def find_new(self, seen: SeenIds) -> list[StoredTransient]:
        """Return the messages of other processes that are not in `seen`, and add them to it."""
        rows = self._database.rows(TransientEntry)
        with seen.lock:
            visible = rows.filter(Q(pk__gt=seen.horizon) | Q(created__gt=seen.newest))
            origins = {(pk, created): origin for pk, created, origin in visible.values_list("pk", "created", "origin")}
            unseen = sorted(pk for pk, created in seen.add(origins) if origins[pk, created] != self._origin())
        return [
            StoredTransient(pk, Transient(name, data, exclude, whisper))
            for start in range(0, len(unseen), IDS_PER_QUERY)
            for pk, name, data, exclude, whisper in rows.filter(pk__in=unseen[start : start + IDS_PER_QUERY])
            .order_by("pk")
            .values_list("pk", "name", "data", "exclude", "whisper")
        ]
