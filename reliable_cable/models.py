"""The tables of the stores in the project's own database."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Stream(models.Model):
    """A stream with its epoch and the offsets of its entries. Times are in seconds since 1970."""

    name = models.CharField(max_length=255, unique=True)
    epoch = models.CharField(max_length=32)
    #: The offset of the newest entry, or 0 if there never was one.
    tail = models.BigIntegerField(default=0)
    #: The offset of the oldest kept entry, or `tail + 1` if no entry is kept.
    low = models.BigIntegerField(default=1)
    #: The time of the newest entry. The next entry never gets an earlier time.
    tail_at = models.FloatField(default=0)
    #: The time of the newest trimmed entry. A read since an earlier time is incomplete.
    trimmed_at = models.FloatField(default=0)
    #: The lineage of the database in which the epoch began, or "" if it is unknown. The database has the default too,
    #: so that servers of the previous release can insert rows during a rolling upgrade.
    lineage = models.CharField(max_length=64, blank=True, default="", db_default="")

    def __str__(self) -> str:
        return self.name


class Lineage(models.Model):
    """A lineage of the database's data (see stores/streams/model_lineage.py)."""

    #: The name that the server reports, or "" if it reports no lineages.
    name = models.CharField(max_length=64, unique=True)
    #: The time before which messages may have been lost; 0 if no messages were lost.
    began = models.FloatField()

    def __str__(self) -> str:
        return self.name


class StreamEntry(models.Model):
    """A numbered message of a stream."""

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    stream = models.ForeignKey(Stream, on_delete=models.CASCADE, related_name="entries", db_index=False)
    offset = models.BigIntegerField()
    data = models.TextField()
    exclude = models.CharField(max_length=64, blank=True, default="")
    idempotency_key = models.CharField(max_length=255, null=True, default=None)  # noqa: DJ001 - NULLs are not unique
    created = models.FloatField()

    class Meta:
        verbose_name_plural = "stream entries"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["stream", "offset"], name="reliable_cable_entry_offset"),
            models.UniqueConstraint(fields=["stream", "idempotency_key"], name="reliable_cable_entry_key"),
        ]
        # The index serves queries for unexpired entries and for entries since a time.
        indexes: ClassVar = [models.Index(fields=["stream", "created", "offset"], name="reliable_cable_entry_time")]

    def __str__(self) -> str:
        return f"{self.stream_id}@{self.offset}"


class OutboxEntry(models.Model):
    """A message that was broadcast inside a transaction, and is numbered after the commit."""

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=255)
    data = models.TextField()
    exclude = models.CharField(max_length=64, blank=True, default="")
    idempotency_key = models.CharField(max_length=255, blank=True, default="")

    class Meta:
        verbose_name_plural = "outbox entries"
        indexes: ClassVar = [models.Index(fields=["name", "id"], name="reliable_cable_outbox")]

    def __str__(self) -> str:
        return f"{self.name}#{self.pk}"


class TransientEntry(models.Model):
    """A message without a position, which other processes find when they poll."""

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=255)
    data = models.TextField()
    exclude = models.CharField(max_length=64, blank=True, default="")
    origin = models.CharField(max_length=32)
    created = models.FloatField(db_index=True)

    class Meta:
        verbose_name_plural = "transient entries"

    def __str__(self) -> str:
        return f"{self.name}~{self.pk}"


class Session(models.Model):
    """The state of a connection, from which its session is restored."""

    sid = models.CharField(max_length=64, primary_key=True)
    #: The identity of the connection, as canonical JSON text.
    identity = models.TextField()
    #: The time when the connection was authenticated, in seconds since 1970.
    authenticated = models.FloatField()
    data = models.JSONField(default=dict)
    expires = models.FloatField(db_index=True)

    def __str__(self) -> str:
        return self.sid


class SessionPart(models.Model):
    """A part of a large session record (see stores/sessions/record_parts.py)."""

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    #: The id of the session. This is no foreign key, because servers of the previous release delete sessions without
    #: their parts. Parts without a session are deleted later.
    sid = models.CharField(max_length=64)
    #: The parts are in the order of their numbers.
    number = models.BigIntegerField()
    #: JSON text.
    data = models.TextField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["sid", "number"], name="reliable_cable_session_part")]

    def __str__(self) -> str:
        return f"{self.sid}#{self.number}"


class Revocation(models.Model):
    """The time at which the sessions that match a condition were revoked."""

    #: The key of the condition (see `identity.condition_key`).
    condition = models.CharField(max_length=64, primary_key=True)
    #: The time of the revocation, in seconds since 1970.
    at = models.FloatField(db_index=True)

    def __str__(self) -> str:
        return self.condition
