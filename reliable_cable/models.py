"""The models of the database engine, which store streams, members, sessions and revocations."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Stream(models.Model):
    """The epoch and position of a stream. Times are in seconds since 1970."""

    name = models.CharField(max_length=255, unique=True)
    epoch = models.CharField(max_length=32)
    #: The offset of the newest entry of the epoch; 0 if the epoch has had no entry.
    tail = models.BigIntegerField(default=0)
    #: The offset of the oldest stored entry; `tail + 1` if no entry is stored.
    low = models.BigIntegerField(default=1)
    #: The time of the newest entry, or of the call that began the epoch. The next entry never gets an earlier time.
    tail_at = models.FloatField(default=0)
    #: The time of the newest entry that was trimmed. A request for all messages since this time, or since an earlier
    #: time, cannot be fulfilled.
    trimmed_at = models.FloatField(default=0)
    #: The lineage (see `Lineage`) that the database had when the epoch began; "" if it is unknown. The column has a
    #: default in the database, so that servers of the previous release can insert rows during a rolling upgrade.
    lineage = models.CharField(max_length=64, blank=True, default="", db_default="")

    def __str__(self) -> str:
        return self.name


class Lineage(models.Model):
    """A lineage, which is an unbroken data set of the database (see stores/streams/model_lineage.py)."""

    #: The name that the database server reports; "" if it reports no lineages.
    name = models.CharField(max_length=64, unique=True)
    #: The time, in seconds since 1970, before which messages may have been lost; 0 if no messages were lost.
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
        # This index is used by queries for unexpired entries and for entries since a time.
        indexes: ClassVar = [models.Index(fields=["stream", "created", "offset"], name="reliable_cable_entry_time")]

    def __str__(self) -> str:
        return f"{self.stream_id}@{self.offset}"


class OutboxEntry(models.Model):
    """A message in the transactional outbox. It was broadcast in a transaction, and is numbered after the commit."""

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
    """A transient message or a whisper. Other processes read it when they poll the database.

    On PostgreSQL, the table is not logged: it is empty after a crash or a failover.
    """

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    name = models.CharField(max_length=255)
    data = models.TextField()
    exclude = models.CharField(max_length=64, blank=True, default="")
    origin = models.CharField(max_length=32)
    #: Whether a client has sent the message. The column has a default in the database, so that servers of the previous
    #: release can insert rows during a rolling upgrade.
    whisper = models.BooleanField(default=False, db_default=False)
    created = models.FloatField(db_index=True)

    class Meta:
        verbose_name_plural = "transient entries"

    def __str__(self) -> str:
        return f"{self.name}~{self.pk}"


class Session(models.Model):
    """A session record, by which the session of a connection can be restored."""

    sid = models.CharField(max_length=64, primary_key=True)
    #: The identity of the connection, as the JSON text from `identity.canonical`.
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
    #: The id of the session. It is not a foreign key, because servers of the previous release delete sessions without
    #: their parts. Parts without a session are deleted later.
    sid = models.CharField(max_length=64)
    #: The number by which the parts of a session are ordered.
    number = models.BigIntegerField()
    #: The part of the record, as JSON text.
    data = models.TextField()

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["sid", "number"], name="reliable_cable_session_part")]

    def __str__(self) -> str:
        return f"{self.sid}#{self.number}"


class Revocation(models.Model):
    """The latest call to `disconnect` or `revoke` with a condition."""

    #: The hash of the condition (see `identity.condition_key`).
    condition = models.CharField(max_length=64, primary_key=True)
    #: The time of the revocation, in seconds since 1970.
    at = models.FloatField(db_index=True)

    def __str__(self) -> str:
        return self.condition


class PresenceStream(models.Model):
    """The incarnation of a stream's presence data, and the numbers of its events and joins.

    On PostgreSQL, the tables of all models whose names begin with `Presence` are unlogged (see migrations/0005).
    """

    name = models.CharField(max_length=255, unique=True)
    incarnation = models.CharField(max_length=32)
    #: The lineage (see `Lineage`) that the database had when the incarnation began; "" if it is unknown.
    lineage = models.CharField(max_length=64, blank=True, default="")
    #: The number of the newest event (see `PresenceEntry`); 0 if there was none.
    tail = models.BigIntegerField(default=0)
    #: The number of joins of sessions.
    joins = models.BigIntegerField(default=0)
    #: The approximate time when the stream was last used, in seconds since 1970.
    used_at = models.FloatField()

    def __str__(self) -> str:
        return self.name


class PresenceSession(models.Model):
    """A session in which a member is present in a stream."""

    #: The hash of the stream's name and the session's id.
    key = models.CharField(max_length=32, primary_key=True)
    #: The foreign keys of presence have no constraint in the database, so that no table depends on an unlogged one.
    stream = models.ForeignKey(PresenceStream, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    #: The hash of `member`, for the index: PostgreSQL cannot index very long texts.
    member_key = models.CharField(max_length=32)
    #: The id of the member, as JSON text.
    member = models.TextField()
    #: The info of the session, as JSON text.
    info = models.TextField()
    #: The number of the session's join in the stream.
    number = models.BigIntegerField()
    #: The number of the join with which the member became present.
    member_number = models.BigIntegerField()
    #: The time of expiry, in seconds since 1970. It is not indexed, because it changes several times in PRESENCE_TTL:
    #: PostgreSQL updates a row in place, without new entries in indexes, if no indexed column changes.
    expires = models.FloatField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["stream", "member_key"], name="reliable_cable_member")]

    def __str__(self) -> str:
        return f"{self.member}@{self.stream_id}"


class PresenceEntry(models.Model):
    """A join or a leave of a member. Other processes read it when they poll.

    The rows of leaves also tell which members have left recently (see `PresenceStore.left_within`).
    """

    id: models.BigAutoField[int, int] = models.BigAutoField(primary_key=True)
    stream = models.ForeignKey(PresenceStream, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False)
    #: The number of the event in the incarnation: 1 for the first one, without holes.
    number = models.BigIntegerField()
    #: "join" or "leave".
    type = models.CharField(max_length=5)
    member_key = models.CharField(max_length=32)
    member = models.TextField()
    info = models.TextField()
    created = models.FloatField()

    class Meta:
        verbose_name_plural = "presence entries"
        constraints: ClassVar = [models.UniqueConstraint(fields=["stream", "number"], name="reliable_cable_presence")]
        indexes: ClassVar = [models.Index(fields=["stream", "member_key"], name="reliable_cable_leave")]

    def __str__(self) -> str:
        return f"{self.stream_id}@{self.number}"


class PresenceSweep(models.Model):
    """The last search for expired sessions by any process. The table has at most one row."""

    #: The time of the search, in seconds since 1970. The first join, or else the first search, inserts the row.
    at = models.FloatField()
    #: The time before which no session expires, because an outage has ended; 0 if there was none.
    grace_end = models.FloatField(default=0)

    def __str__(self) -> str:
        return f"{self.at:.3f}"
