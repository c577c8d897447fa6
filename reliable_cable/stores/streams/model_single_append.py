"""Appends a message without an idempotency key on PostgreSQL, with one statement. This is the most frequent write."""

from typing import Any

from reliable_cable.conf import CableSettings
from reliable_cable.models import OutboxEntry, Stream, StreamEntry
from reliable_cable.protocol.positions import StreamPosition
from reliable_cable.protocol.recovery import Entry
from reliable_cable.stores.database.database import Database
from reliable_cable.stores.database.prepared import PreparedStatement
from reliable_cable.stores.database.server import DatabaseServer

from .base import Message, Published
from .model_numbering import Written
from .model_retention import Retention


class SingleAppend:
    """Numbers a message and inserts it as an entry, with one statement.

    `Numbering` does the same for all other cases. It executes several statements, which Django compiles and PostgreSQL
    plans anew for each append.

    Args:
        database: the database with the streams.
        settings: the settings; the history settings of the streams are used.
        server: the server of the database, which reports the time and the current lineage.
        retention: the object that decides which streams must be trimmed.
    """

    def __init__(
        self, database: Database, settings: CableSettings, server: DatabaseServer, retention: Retention
    ) -> None:
        self._database = database
        self._settings = settings
        self._server = server
        self._retention = retention
        self._statement = PreparedStatement(database.alias)

    def supports(self, message: Message) -> bool:
        """Return whether `write` can append a message. This needs PostgreSQL, and the absence of an idempotency key."""
        return not message.idempotency_key and self._server.is_postgresql

    def write(self, name: str, message: Message, begin: bool) -> Written | None:
        """Append a message in a transaction.

        Args:
            name: the name of the stream.
            message: the message.
            begin: whether to begin the transaction. If False, a transaction is already open.

        Returns:
            None if nothing was changed, because the stream has no message in its current epoch, its epoch began in
            another lineage of the database, or it has messages in the outbox. In these cases, call `Numbering.write`.

        Raises:
            StaleStatementError: nothing was changed. `Numbering.write` must be called in another transaction.
            django.db.Error: nothing was changed.
        """
        now, times = self._server.now_sql()
        lineage = self._server.lineage_sql("lineage")
        query = f"""
            WITH stream AS (
                UPDATE {_name(Stream)} SET tail = tail + 1, tail_at = GREATEST(tail_at, {now}), lineage = {lineage}
                WHERE name = %s AND tail > 0 AND lineage IN ('', {lineage})
                AND NOT EXISTS (SELECT 1 FROM {_name(OutboxEntry)} WHERE name = %s)
                RETURNING id, epoch, tail, low, tail_at
            ), entry AS (
                INSERT INTO {_name(StreamEntry)} (stream_id, "offset", data, exclude, created)
                SELECT id, tail, %s, %s, tail_at FROM stream
            )
            SELECT epoch, tail, low, tail_at,
                (SELECT created FROM {_name(StreamEntry)} WHERE stream_id = stream.id AND "offset" < stream.tail
                 ORDER BY "offset" DESC LIMIT 1)
            FROM stream
        """  # noqa: S608 - only names of tables and functions
        row = self._statement.execute(query, [*times, name, name, message.data, message.exclude], begin=begin)
        return None if row is None else self._written(name, message, *row)

    def _written(
        self, name: str, message: Message, epoch: str, tail: int, low: int, now: float, previous: float | None
    ) -> Written:
        entry = Entry(tail, message.data, message.exclude)
        overfull = self._retention.has_expired(
            name, low, tail - 1, now if previous is None else previous, now
        ) or self._retention.has_grown(name, low, tail, tail - 1)
        return Written(
            [StreamPosition(epoch, tail)], [Published(name, epoch, entry)], [name] if overfull else [], complete=True
        )


def _name(model: Any) -> str:
    return f'"{model._meta.db_table}"'
