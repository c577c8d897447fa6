"""The session store in the project's own database."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from operator import itemgetter
from typing import Any, Final, TypeVar

from django.db.models import BigIntegerField, Case, Exists, FloatField, OuterRef, Q, QuerySet, TextField, Value, When
from django.db.models.functions import Cast

from reliable_cable.conf import CableSettings
from reliable_cable.identity import Identity, canonical, condition_key, condition_keys
from reliable_cable.logs import logger
from reliable_cable.models import Revocation, Session, SessionPart
from reliable_cable.stores.database.database import ROWS_PER_TRANSACTION
from reliable_cable.stores.database.store import ModelStore, retried_read

from .base import CLOCK_MARGIN, SessionRecord, SessionStore, is_revoked, is_session_id
from .record_parts import MAX_WHOLE_SIZE, KnownParts, PartsChange, RecordParts, StoredParts, join

T = TypeVar("T")

#: The maximum number of records that one SELECT reads.
LOAD_SIZE: Final = 100

#: The maximum number of parts that `prune` examines to find parts without a record.
PARTS_PER_SEARCH: Final = 5000

#: The kinds of rows that `ModelSessionStore._select` returns.
_HEAD, _PART, _REVOCATION = range(3)


class ModelSessionStore(ModelStore, SessionStore):
    """Stores session records in the models `Session` and `SessionPart`, in the database `settings.database`.

    A large record is divided into a head, which is a row of `Session`, and parts, which are rows of `SessionPart` (see
    record_parts.py).

    Times come from the server's clock on PostgreSQL, and from this host's clock on SQLite. Every method raises
    `StoreError` if the database fails.

    Args:
        settings: the settings; `database` and `sessions_ttl` are used.
        clock: a clock for tests, which returns seconds since 1970. It replaces the server's or this host's clock.
    """

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock)
        self._known = KnownParts()
        #: The session id of the last part that `prune` has examined; `""` to begin with the first part.
        self._examined = ""

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Insert or replace records. If a large record was saved by this process before, write only its changes.

        If all records are small, this takes one statement; otherwise, at most four. If a record is not JSON, no record
        is stored.
        """
        if self.settings.sessions_ttl == 0 or not records:
            return
        texts = {sid: self._encode(sid, record) for sid, record in records.items()}
        stored = self._write("saved", partial(self._save, records, texts))
        for sid, text in texts.items():
            if isinstance(text, str):
                self._known.forget(sid)
            else:
                self._known.add(sid, stored[sid])

    def _encode(self, sid: str, record: SessionRecord) -> str | RecordParts:
        known = self._known.get(sid)
        if known is None:
            text = json.dumps(record.data)
            return text if len(text) <= MAX_WHOLE_SIZE else RecordParts.of(record) or text
        return RecordParts.of(record, known.list_key) or json.dumps(record.data)

    def _save(
        self, records: Mapping[str, SessionRecord], texts: Mapping[str, str | RecordParts]
    ) -> dict[str, StoredParts]:
        """Write records, and return the stored parts of the large records."""
        large = {sid: text for sid, text in texts.items() if isinstance(text, RecordParts)}
        known = self._lock(texts)
        # Heads are written before parts, because only the transaction that has locked a head may write its parts.
        expires = self._server.ago(-self.settings.sessions_ttl)
        # The data are stored as JSON text in a JSON string, because PostgreSQL refuses JSON with U+0000 or with half a
        # surrogate pair. If JSON itself were stored, a client that sends such text could keep a whole batch of records
        # from being saved.
        self._rows.bulk_create(
            [
                Session(
                    sid=sid,
                    identity=canonical(records[sid].identity),
                    authenticated=records[sid].authenticated,
                    data=text if isinstance(text, str) else text.head,
                    expires=expires,
                )
                # All processes lock records in the same order, because PostgreSQL takes 1 s to find a deadlock.
                for sid, text in sorted(texts.items(), key=itemgetter(0))
            ],
            update_conflicts=True,
            unique_fields=["sid"],
            update_fields=["identity", "authenticated", "data", "expires"],
        )
        return self._save_parts(large, known) if large else {}

    def _lock(self, texts: Mapping[str, str | RecordParts]) -> dict[str, Mapping[int, int]]:
        """Lock records, and return the hash values of the stored parts, by session id and number.

        The result contains only records that this process wrote last. If this process knows no hash values, no record
        is locked.
        """
        known = {
            sid: stored
            for sid, text in texts.items()
            if isinstance(text, RecordParts)
            and (stored := self._known.get(sid)) is not None
            and stored.list_key == text.list_key
        }
        if not known:
            return {}
        # If another process has written a record since this process wrote it, the hash value of the head differs.
        head = Case(When(sid__in=list(known), then="data"))
        heads = self._rows.select_for_update().filter(sid__in=list(texts)).order_by("sid").values_list("sid", head)
        return {sid: known[sid].hashes for sid, head in heads if sid in known and hash(head) == known[sid].head}

    def _save_parts(
        self, large: Mapping[str, RecordParts], known: Mapping[str, Mapping[int, int]]
    ) -> dict[str, StoredParts]:
        changes = {sid: PartsChange.between(known.get(sid), text.items) for sid, text in large.items()}
        outdated = Q(sid__in=[sid for sid, change in changes.items() if change.whole])
        for sid, change in changes.items():
            if change.removed:
                outdated |= Q(sid=sid, number__in=change.removed)
        self._parts.filter(outdated).delete()
        self._parts.bulk_create(
            [
                SessionPart(sid=sid, number=number, data=item)
                for sid, change in changes.items()
                for number, item in change.written.items()
            ],
            update_conflicts=True,
            unique_fields=["sid", "number"],
            update_fields=["data"],
        )
        return {sid: StoredParts.of(text, changes[sid].hashes) for sid, text in large.items()}

    # -- loading ------------------------------------------------------------------------------------------------------

    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return the record of a session."""
        return self.load_many([(sid, identity)])[0]

    @retried_read
    def load_many(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        """Return the records of sessions. Each SELECT reads up to `LOAD_SIZE` records."""
        with self._errors("read"):
            return [
                record
                for start in range(0, len(wanted), LOAD_SIZE)
                for record in self._load(wanted[start : start + LOAD_SIZE])
            ]

    def _load(self, wanted: Sequence[tuple[str, Identity]]) -> list[SessionRecord | None]:
        sids = {sid for sid, _ in wanted if is_session_id(sid)}
        if not sids:
            return [None] * len(wanted)
        conditions = {key for _, identity in wanted for key in condition_keys(identity)}
        heads: dict[str, tuple[str, float, str]] = {}
        parts: dict[str, dict[int, str]] = defaultdict(dict)
        times: dict[str, float] = {}
        for kind, key, number, text, at, identity in self._select(sids, conditions):
            if kind == _HEAD:
                # The column contains JSON text in a JSON string.
                heads[key] = (json.loads(text), at, identity)
            elif kind == _PART:
                parts[key][number] = text
            else:
                times[key] = at
        return [_loaded(heads.get(sid), parts[sid], identity, times) for sid, identity in wanted]

    def _select(self, sids: Collection[str], conditions: Collection[str]) -> Iterable[tuple[Any, ...]]:
        """Read records, their parts and revocations with one statement, so that all are from the same snapshot."""
        no_number, no_text = Value(0, BigIntegerField()), Value("", TextField())
        heads = self._alive().filter(sid__in=sids)
        parts = self._parts.filter(sid__in=sids)
        revocations = self._database.rows(Revocation).filter(condition__in=conditions)
        data = Cast("data", TextField())
        return heads.values_list(Value(_HEAD), "sid", no_number, data, "authenticated", "identity").union(
            parts.values_list(Value(_PART), "sid", "number", "data", Value(0.0, FloatField()), no_text),
            revocations.values_list(Value(_REVOCATION), "condition", no_number, no_text, "at", no_text),
            all=True,
        )

    # -- renewing and deleting ----------------------------------------------------------------------------------------

    def touch(self, sids: Collection[str]) -> set[str]:
        """Renew the TTL of records with one UPDATE. Expired records are not renewed."""
        if not sids:
            return set()
        expires = self._server.ago(-self.settings.sessions_ttl)
        alive = self._alive().filter(sid__in=sids)

        def touch() -> set[str]:
            if alive.filter(sid__in=self._locked(sids)).update(expires=expires) == len(set(sids)):
                return set()
            return set(sids) - set(alive.values_list("sid", flat=True))

        return self._write("touched", touch)

    def delete(self, sids: Collection[str]) -> None:
        """Delete records, and then their parts.

        If another process creates a record again between the two statements, its parts are not deleted.
        """
        if not sids:
            return
        for sid in sids:
            self._known.forget(sid)

        def delete() -> None:
            self._rows.filter(sid__in=self._locked(sids)).delete()
            self._orphans.filter(sid__in=sids).delete()

        self._write("deleted", delete)

    def revoke(self, condition: Identity) -> float:
        """Store the time of a revocation with one INSERT. It is also compared with records that are saved later."""
        with self._errors("revoked"):
            now = self._server.time()
        if self.settings.sessions_ttl:
            revoke = partial(
                self._database.rows(Revocation).bulk_create,
                [Revocation(condition=condition_key(condition), at=now)],
                update_conflicts=True,
                unique_fields=["condition"],
                update_fields=["at"],
            )
            # The caller may have an open transaction on this database, because `disconnect(using=...)` waits for the
            # commit of one database only. A rollback must not remove the row, so the row is written outside of that
            # transaction.
            self._database.outside(partial(self._write, "revoked", revoke))
        return now

    @retried_read
    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the time of the last revocation that matches it; 0 if none matches."""
        keys = {key for identity in identities for key in condition_keys(identity)}
        with self._errors("read"):
            times = dict(self._database.rows(Revocation).filter(condition__in=keys).values_list("condition", "at"))
        return [max((times.get(key, 0.0) for key in condition_keys(identity)), default=0.0) for identity in identities]

    def prune(self, *, limit: int = 1000) -> int:
        """Delete expired records, the oldest first, and revocations that are no longer needed.

        After that, delete the parts of these records, and other parts without a record, in short transactions. Records
        and parts that another process is deleting are skipped.
        """
        expired = self._rows.filter(expires__lte=self._server.ago(0))
        outdated = self._server.ago(self.settings.sessions_ttl + CLOCK_MARGIN)
        oldest = expired.select_for_update(skip_locked=True).order_by("expires").values_list("sid", flat=True)[:limit]

        def prune() -> list[str]:
            sids = list(oldest)
            if sids:
                self._rows.filter(sid__in=sids).delete()
            self._database.rows(Revocation).filter(at__lte=outdated).delete()
            return sids

        pruned = self._write("pruned", prune)
        self._prune_parts([*pruned, *self._find_orphans()])
        return len(pruned)

    def _find_orphans(self) -> Collection[str]:
        """Return the ids of deleted records whose parts remain in the table.

        Such parts remain if a process ended during `prune`, or if a process of the previous release deleted the record.
        Because the table may be large, each call examines only some parts, and the next call continues after them.
        """
        following = self._parts.filter(sid__gt=self._examined).order_by("sid", "number").values_list("sid", flat=True)
        with self._errors("read"):
            sids = dict.fromkeys(following[:PARTS_PER_SEARCH])
            # The next call continues after the last id, in the order of the database. If this call has found no part,
            # the next call begins at the first part.
            self._examined = next(reversed(sids), "")
            return sids.keys() - set(self._rows.filter(sid__in=sids).values_list("sid", flat=True)) if sids else ()

    def _prune_parts(self, sids: Collection[str]) -> None:
        if not sids:
            return
        some = self._orphans.filter(sid__in=sids).select_for_update(skip_locked=True, of=("self",))
        delete = self._parts.filter(id__in=some.values("id")[:ROWS_PER_TRANSACTION]).delete
        while self._write("pruned", delete)[0] == ROWS_PER_TRANSACTION:
            pass

    def _write(self, action: str, call: Callable[[], T]) -> T:
        with self._errors(action):
            return self._database.write(call)

    def _errors(self, action: str) -> AbstractContextManager[None]:
        return self._database.store_errors(f"Session records could not be {action}")

    def _locked(self, sids: Collection[str]) -> QuerySet[Session, str]:
        """Return a subquery that locks records in the order of their ids. `save` uses the same order."""
        locked = self._rows.select_for_update().filter(sid__in=sids).order_by("sid")
        return locked.values_list("sid", flat=True)

    def _alive(self) -> QuerySet[Session]:
        return self._rows.filter(expires__gt=self._server.ago(0))

    @property
    def _rows(self) -> QuerySet[Session]:
        return self._database.rows(Session)

    @property
    def _parts(self) -> QuerySet[SessionPart]:
        return self._database.rows(SessionPart)

    @property
    def _orphans(self) -> QuerySet[SessionPart]:
        """The rows of parts whose record no longer exists."""
        return self._parts.filter(~Exists(self._rows.filter(sid=OuterRef("sid"))))


def _loaded(
    head: tuple[str, float, str] | None, parts: Mapping[int, str], identity: Identity, times: Mapping[str, float]
) -> SessionRecord | None:
    """Return a session's record; None if it does not exist, has another identity, was revoked, or lacks parts."""
    if head is None:
        return None
    text, authenticated, owner = head
    revoked = [times[key] for key in condition_keys(identity) if key in times]
    if owner != canonical(identity) or is_revoked(authenticated, revoked):
        return None
    items = [parts[number] for number in sorted(parts)]
    data = join(text, items)
    if data is None:
        logger.error("A session record cannot be restored, because some of its parts are missing from the database.")
        return None
    return SessionRecord(dict(identity), authenticated, data, len(text) + sum(map(len, items)))
