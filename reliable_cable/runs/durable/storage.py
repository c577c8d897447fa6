"""Creates, changes and deletes durable streams. All functions run in threads, because they query the database.

An append is a transaction that locks the row, and stores the state of the writers and the new entries. The entries go
into the outbox of the stream store, which gives them their offsets after the commit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import IntegrityError, router, transaction
from django.db.models import F
from django.utils import timezone

from reliable_cable.broadcasting import broadcast_batch, forget
from reliable_cable.conf import get_settings
from reliable_cable.namespaces import current_namespace, use_namespace
from reliable_cable.runs.durable_models import DurableStream, DurableStreamQuerySet
from reliable_cable.stores.engine import get_engine

from .access import durable_streams, is_admitted
from .appending import Append, Outcome, WriterState, decide
from .framing import InvalidBody, media_type, pack
from .offsets import new_generation

#: The maximum number of expired streams that are deleted when a stream is created.
MAX_EXPIRED: Final = 20


class NotFound(Exception):
    """Raised if there is no such stream, or the user may not read or create it."""


class Forbidden(Exception):
    """Raised if the user may read the stream, but may not write to it."""


class Gone(Exception):
    """Raised if the stream was deleted, but is kept for its forks."""


class Conflict(Exception):
    """Raised if the state of an existing stream prevents a creation. The text of the error is for the client."""


class TooManyStreams(Exception):
    """Raised if the owner has too many streams."""


class NotDurable(Exception):
    """Raised if the data of the stream would not be stored durably."""


@dataclass(frozen=True, slots=True)
class Creation:
    """A request to create a stream.

    Args:
        content_type: the content type of the stream.
        ttl: how long, in seconds, to keep the stream without a read or write; None for no limit.
        expires_at: the time at which the stream expires; None if it does not expire.
        close: whether to close the stream after the body of the request.
        fork: the values of a request to fork (see `DurableStream.fork`); None if the request forks no stream.
        source: the stream to fork.
        ancestors: the streams whose offsets a fork accepts (see `DurableStream.ancestors`).
        inherited: returns the entries that a fork copies from its source. It is called only if the fork may be created.
    """

    content_type: str
    ttl: int | None = None
    expires_at: datetime | None = None
    close: bool = False
    fork: list[str | int] | None = None
    source: DurableStream | None = None
    ancestors: Mapping[str, int] = field(default_factory=dict)
    inherited: Callable[[], Sequence[dict[str, Any]]] = tuple


def find(user: Any, name: str, *, to_write: bool = False, renew: bool = False) -> DurableStream:
    """Return a stream, if the user may use it.

    Args:
        user: the user who wants to use the stream.
        name: the name of the stream, as the client sent it.
        to_write: whether the user wants to change the stream.
        renew: whether to postpone the time at which the stream expires, if the stream has a TTL.

    Raises:
        NotFound, Forbidden, Gone: the user cannot use the stream (see these exceptions).
    """
    rules = durable_streams()
    row = None
    if is_admitted(rules, user):
        row = _rows().filter(namespace=current_namespace(), name=name).first()
    if rules is None or row is None or row.expired or not rules.may_read(user, row):
        raise NotFound
    if to_write and not rules.may_write(user, row):
        raise Forbidden
    if row.deleted:
        raise Gone
    if renew:
        _renew(row)
    return row


def create(user: Any, name: str, creation: Creation, body: bytes) -> tuple[DurableStream, bool]:
    """Create a stream. Return the stream, and whether it is new.

    Args:
        user: the user who becomes the owner.
        name: the name of the stream.
        creation: the properties that the request asks for.
        body: the first data of the stream, after those of the source.

    Raises:
        NotFound: the user may not create the stream.
        Conflict: a different stream has this name, or a deleted stream with forks has it.
        TooManyStreams: the owner has too many streams.
        InvalidBody: the body cannot be appended.
        NotDurable: the stream store is not durable.
    """
    found = existing(user, name)
    if found is None:
        new = _new_row(user, name, creation)
        entries = pack(body, creation.content_type, get_settings().max_broadcast_size) if body else []
        inherited = creation.inherited()
        try:
            with transaction.atomic(using=_alias()):
                _add(new, [*inherited, *entries], end=creation.close)
                new.save(using=_alias(), force_insert=True)
            return new, True
        except IntegrityError:
            found = existing(user, name)
            if found is None:
                raise Conflict("The stream was changed at the same time. Try again.") from None
    _compare(found, creation)
    return found, False


def _new_row(user: Any, name: str, creation: Creation) -> DurableStream:
    """Delete some expired streams. Then return an unsaved row for a new stream.

    Raises:
        NotFound, TooManyStreams, NotDurable: see `create`.
    """
    rules = durable_streams()
    if rules is None or not is_admitted(rules, user) or not rules.may_create(user, name):
        raise NotFound
    namespace = current_namespace()
    owner = user.pk if getattr(user, "is_authenticated", False) else None
    # Only the data of the current namespace can be deleted here.
    rows = _rows().filter(namespace=namespace)
    for old in rows.expired()[:MAX_EXPIRED]:
        delete(old, only_expired=True)
    own = rows.filter(owner=owner)
    # A deleted stream without forks still has a row if the forks were deleted with the accounts of their owners.
    for old in own.filter(deleted=True, forks=None)[:MAX_EXPIRED]:
        delete(old)
    if own.filter(deleted=False).count() >= rules.max_streams:
        raise TooManyStreams
    row = DurableStream(
        name=name,
        namespace=namespace,
        owner_id=owner,
        content_type=creation.content_type,
        generation=new_generation(),
        closed=creation.close,
        ttl=creation.ttl,
        expires_at=creation.expires_at,
        source=creation.source,
        fork=creation.fork,
        ancestors=dict(creation.ancestors),
    )
    if creation.ttl is not None:
        row.expires_at = timezone.now() + timedelta(seconds=creation.ttl)
    _require_durable_store(row.stream)
    return row


def append(row: DurableStream, request: Append, body: bytes) -> tuple[Outcome, DurableStream, WriterState]:
    """Append the body of a request to a stream, and close the stream if the request asks for it.

    Returns:
        The outcome, the current row, and the state of the writers.

    Raises:
        NotFound: the stream was deleted, or has expired.
        InvalidBody: the body cannot be appended.
    """
    entries = pack(body, row.content_type, get_settings().max_broadcast_size) if body else []
    if body and not entries:
        raise InvalidBody("The array in the body is empty.")
    with transaction.atomic(using=_alias()):
        # The update locks the row, or the whole database on SQLite. A query alone would not do that on SQLite.
        if not _rows().alive().filter(pk=row.pk, deleted=False).update(appended_at=timezone.now()):
            raise NotFound
        row = _rows().get(pk=row.pk)
        state = WriterState(row.content_type, row.closed, row.sequence, row.producers, row.closed_by)
        outcome = decide(state, request)
        if outcome is Outcome.ACCEPTED:
            _add(row, entries, end=request.close)
            row.closed, row.sequence, row.closed_by = state.closed, state.sequence, state.closed_by
            row.producers = state.producers
            row.expires_at = row.renewed_expiry() or row.expires_at
            row.save(using=_alias())
        else:
            transaction.set_rollback(True, using=_alias())
    return outcome, row, state


def delete(row: DurableStream, *, only_expired: bool = False) -> None:
    """Delete a stream and its data. If the stream has forks, its row stays until they are deleted, too.

    Args:
        row: the row, which may have changed in the database.
        only_expired: delete the stream only if it is still expired.
    """
    try:
        _delete(row.pk, only_expired=only_expired)
    except IntegrityError:
        # A fork was created at the same time. The second call finds it.
        _delete(row.pk, only_expired=only_expired)


def _delete(pk: UUID, *, only_expired: bool = False) -> None:
    rows = _rows().filter(pk=pk)
    with transaction.atomic(using=_alias()):
        # The update locks the row, as in `append`. Without the lock, two requests that delete a source and its last
        # fork could each leave the deletion of the source to the other.
        if not (rows.expired() if only_expired else rows).update(deleted=F("deleted")):
            return
        row = rows.get()
        if row.forks.using(_alias()).exists():
            rows.update(deleted=True, expires_at=None, ttl=None)
        else:
            rows.delete()
            if row.source_id is not None:
                sources = _rows().filter(pk=row.source_id)
                sources.update(deleted=F("deleted"))
                if sources.filter(deleted=True).exists():
                    _delete(row.source_id)
        with use_namespace(row.namespace):
            forget(row.stream, using=_alias())


def reload(row: DurableStream) -> DurableStream:
    """Return the current row of a stream.

    Raises:
        NotFound: the stream was deleted, or has expired.
    """
    found = _rows().alive().filter(pk=row.pk, deleted=False).first()
    if found is None:
        raise NotFound
    return found


def set_shift(row: DurableStream, shift: int) -> None:
    """Store the difference between the numbers of entries and their offsets, after it has changed."""
    row.shift = shift
    _rows().filter(pk=row.pk).update(shift=shift)


def _require_durable_store(stream: str) -> None:
    """Check that the data of a stream are stored durably, in the same database as its `DurableStream` row.

    Raises:
        NotDurable: they are stored elsewhere, or not durably.
    """
    if not has_durable_store(stream):
        raise NotDurable


def has_durable_store(stream: str) -> bool:
    """Return whether the settings store a stream durably, in the same database as its `DurableStream` row."""
    settings, store = get_settings(), get_engine().streams
    return store.supports_durable and settings.policy(stream).durable and settings.database == _alias()


def _rows() -> DurableStreamQuerySet:
    return DurableStream.objects.db_manager(_alias()).get_queryset()


def _alias() -> str:
    return router.db_for_write(DurableStream)


def existing(user: Any, name: str) -> DurableStream | None:
    """Return the stream with a name; None if there is none. If the stream has expired, delete it first.

    Raises:
        NotFound: the user may not use durable streams, or may not read and write this one.
        Conflict: the stream was deleted, but has forks.
    """
    rules = durable_streams()
    if rules is None or not is_admitted(rules, user):
        raise NotFound
    row: DurableStream | None = _rows().filter(namespace=current_namespace(), name=name).first()
    if row is None:
        return None
    if row.expired:
        delete(row, only_expired=True)
        return existing(user, name)
    if not rules.may_read(user, row) or not rules.may_write(user, row):
        raise NotFound
    if row.deleted:
        if row.forks.using(_alias()).exists():
            raise Conflict("The stream was deleted, but has forks.")
        delete(row)
        return None
    return row


def _compare(row: DurableStream, creation: Creation) -> None:
    """Check that an existing stream has the properties that a request to create it asks for.

    Raises:
        Conflict: a property differs.
    """
    given = {
        "content type": (media_type(row.content_type), media_type(creation.content_type)),
        "Stream-TTL": (row.ttl, creation.ttl),
        "Stream-Expires-At": (None if row.ttl is not None else row.expires_at, creation.expires_at),
        "Stream-Closed": (row.closed, creation.close),
        "Stream-Forked-From": (row.fork, creation.fork),
    }
    differing = [key for key, (existing, wanted) in given.items() if existing != wanted]
    if differing:
        raise Conflict(f"There is a stream with this name, but another {differing[0]}.")


def _add(row: DurableStream, entries: Sequence[dict[str, Any]], *, end: bool) -> None:
    """Append entries to the data of a stream.

    If `end` is set, the last entry closes the stream. If there are no entries, an empty one is added for this.
    """
    numbered = [{"n": row.count + index, **entry} for index, entry in enumerate(entries, start=1)]
    row.count += len(numbered)
    row.appended_at = timezone.now()
    if end:
        if not numbered:
            numbered = [{"n": row.count}]
        numbered[-1]["end"] = True
    if numbered:
        broadcast_batch([(row.stream, entry) for entry in numbered], using=_alias())


def _renew(row: DurableStream) -> None:
    until = row.renewed_expiry()
    if until is not None:
        row.expires_at = until
        _rows().alive().filter(pk=row.pk, deleted=False).update(expires_at=until)
