"""The embedded engine's tables."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Stream(models.Model):
    """A stream: its numbering, and what of it is kept. `low` is the oldest kept offset, `tail + 1` if none is."""

    name = models.CharField(max_length=255, unique=True)
    epoch = models.CharField(max_length=32)
    tail = models.BigIntegerField(default=0)
    low = models.BigIntegerField(default=1)
    #: When the newest entry was made; an entry's time is never before it. Seconds since 1970.
    tail_at = models.FloatField(default=0)
    #: When the newest trimmed entry was made, so that an incomplete `since` is recognised.
    trimmed_at = models.FloatField(default=0)
    #: The lineage of the database in which the epoch began; "" if it is unknown. The database has the default too, so
    #: that servers of the previous release can insert rows during a rolling upgrade.
    lineage = models.CharField(max_length=64, blank=True, default="", db_default="")

    def __str__(self) -> str:
        return self.name


class StreamEntry(models.Model):
    """A numbered message."""

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    stream = models.ForeignKey(Stream, on_delete=models.CASCADE, related_name="entries", db_index=False)
    offset = models.BigIntegerField()
    data = models.TextField()
    exclude = models.CharField(max_length=64, blank=True, default="")
    idempotency_key = models.CharField(max_length=255, null=True, default=None)  # noqa: DJ001 - NULLs are not unique
    created = models.FloatField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["stream", "offset"], name="reliable_cable_entry_offset"),
            models.UniqueConstraint(fields=["stream", "idempotency_key"], name="reliable_cable_entry_key"),
        ]
        # What has not expired, and what came since some time.
        indexes: ClassVar = [models.Index(fields=["stream", "created", "offset"], name="reliable_cable_entry_time")]

    def __str__(self) -> str:
        return f"{self.stream_id}@{self.offset}"


class OutboxEntry(models.Model):
    """A message that was broadcast inside a transaction and is to be numbered after its commit."""

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
    """A message without a position, for the other processes to find within seconds."""

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
    """What a dropped connection needs to be resumed."""

    sid = models.CharField(max_length=64, primary_key=True)
    #: Whose it is, as canonical JSON text.
    identity = models.TextField()
    #: When its connection was authenticated, in seconds since 1970.
    authenticated = models.FloatField()
    data = models.JSONField(default=dict)
    expires = models.FloatField(db_index=True)

    def __str__(self) -> str:
        return self.sid


class Revocation(models.Model):
    """When the sessions that match some identifiers became void, in seconds since 1970."""

    condition = models.CharField(max_length=64, primary_key=True)
    at = models.FloatField(db_index=True)

    def __str__(self) -> str:
        return self.condition
