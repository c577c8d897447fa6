"""The database model of durable streams."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import ClassVar, Final, Self

from django.conf import settings
from django.db import models
from django.utils import timezone

from .events import DURABLE_PREFIX

MAX_NAME_LENGTH: Final = 255
MAX_TYPE_LENGTH: Final = 255
MAX_SEQUENCE_LENGTH: Final = 255


class DurableStreamQuerySet(models.QuerySet["DurableStream"]):
    """A queryset with filters for durable streams."""

    def alive(self) -> Self:
        """Return the streams that have not expired."""
        return self.filter(models.Q(expires_at=None) | models.Q(expires_at__gt=timezone.now()))

    def expired(self) -> Self:
        """Return the streams that have expired."""
        return self.filter(expires_at__lte=timezone.now())


class DurableStreamManager(models.Manager["DurableStream"]):
    """A manager whose queries have the filters of `DurableStreamQuerySet`."""

    def get_queryset(self) -> DurableStreamQuerySet:
        """Return a query for the streams of all owners and namespaces."""
        return DurableStreamQuerySet(self.model, using=self._db)


class DurableStream(models.Model):
    """A stream that clients create, write and read over HTTP.

    The row has the state of the writers. The data are in the stream store, in the stream that `stream` names.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    #: The name in the URL.
    name = models.CharField(max_length=MAX_NAME_LENGTH)
    #: The namespace in which the stream was created, or "".
    namespace = models.CharField(max_length=100, blank=True, default="", editable=False)
    #: The user who has created the stream.
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, blank=True)
    content_type = models.CharField(max_length=MAX_TYPE_LENGTH)
    #: A random string, which all offsets of the stream contain.
    generation = models.CharField(max_length=16, editable=False)
    #: The number of entries with data, including those that were copied from the source.
    count = models.BigIntegerField(default=0, editable=False)
    #: The difference between the number of an entry and its offset in the store. It is not 0 after the store has begun
    #: a new epoch.
    shift = models.BigIntegerField(default=0, editable=False)
    #: Whether no more entries can be appended.
    closed = models.BooleanField(default=False)
    #: How long, in seconds, the stream is kept without a read or write.
    ttl = models.BigIntegerField(null=True, blank=True)
    #: The time at which the stream expires. If the stream has a TTL, reads and writes postpone this time.
    expires_at = models.DateTimeField(null=True, blank=True, db_index=True)
    #: The last value of `Stream-Seq`.
    sequence = models.CharField(max_length=MAX_SEQUENCE_LENGTH, blank=True, default="", editable=False)
    #: For each idempotent producer, its epoch and the sequence number of its last request.
    producers = models.JSONField(default=dict, blank=True, editable=False)
    #: The producer, epoch and sequence number of the request that closed the stream.
    closed_by = models.JSONField(null=True, blank=True, editable=False)
    #: The stream from which this one was forked, as long as the row of that stream exists.
    source = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="forks", editable=False
    )
    #: The values of the request to fork: the name of the source, the offset, and the number of bytes or values
    #: after the offset.
    fork = models.JSONField(null=True, blank=True, editable=False)
    #: The generations of the streams from which this fork has data, with the number of common entries. Up to this
    #: number, the offsets of these streams are valid in the fork, too.
    ancestors = models.JSONField(default=dict, blank=True, editable=False)
    #: Whether the stream was deleted, but its row is kept because there are forks of the stream.
    deleted = models.BooleanField(default=False, editable=False)
    #: The time at which the last entry was appended.
    appended_at = models.DateTimeField(default=timezone.now, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[DurableStreamManager] = DurableStreamManager()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["namespace", "name"], name="reliable_cable_durable_name"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def stream(self) -> str:
        """The name of the stream in the store."""
        return f"{DURABLE_PREFIX}{self.pk}"

    @property
    def expired(self) -> bool:
        """Whether the stream has expired. It then counts as deleted."""
        return self.expires_at is not None and self.expires_at <= timezone.now()

    def renewed_expiry(self) -> datetime | None:
        """Return the new time of expiry after a read or write; None if `expires_at` is to be kept."""
        if self.ttl is None or self.expires_at is None:
            return None
        until = timezone.now() + timedelta(seconds=self.ttl)
        # A small difference is not worth a write to the database.
        return until if (until - self.expires_at).total_seconds() > self.ttl / 20 else None
