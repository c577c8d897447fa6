"""The session store in the project's own database."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

from django.db.models import QuerySet, Subquery

from reliable_cable.identity import Identity, canonical, condition_key, condition_keys
from reliable_cable.models import Revocation, Session
from reliable_cable.stores.database.store import ModelStore, retried_read

from .base import CLOCK_MARGIN, SessionRecord, SessionStore, is_revoked, is_session_id

T = TypeVar("T")


class ModelSessionStore(ModelStore, SessionStore):
    """Stores session records in the model `Session`, in the database `settings.database`.

    Times come from the server's clock on PostgreSQL, and from this host's clock on SQLite. Every method raises
    `StoreError` if the database fails.

    Args:
        settings: the settings; `database` and `sessions_ttl` are used.
        clock: replaces the clock in tests, in seconds since 1970.
    """

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Insert or replace records with one statement. If one of them is not JSON, none is stored."""
        if self.settings.sessions_ttl == 0 or not records:
            return
        expires = self._server.ago(-self.settings.sessions_ttl)
        # The data is stored as JSON text in a JSON string. PostgreSQL refuses JSON with U+0000 or with half a surrogate
        # pair. Clients can send both, and one such record would keep all records of the batch from being saved.
        rows = [
            Session(
                sid=sid,
                identity=canonical(record.identity),
                authenticated=record.authenticated,
                data=json.dumps(record.data),
                expires=expires,
            )
            for sid, record in records.items()
        ]
        save = partial(
            self._database.rows(Session).bulk_create,
            rows,
            update_conflicts=True,
            unique_fields=["sid"],
            update_fields=["identity", "authenticated", "data", "expires"],
        )
        self._write("saved", save)

    @retried_read
    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return a record, with one SELECT."""
        if not is_session_id(sid):
            return None
        revocations = self._database.rows(Revocation).filter(condition__in=condition_keys(identity))
        revoked = revocations.order_by("-at").values("at")[:1]
        records = self._alive().filter(sid=sid, identity=canonical(identity)).annotate(revoked=Subquery(revoked))
        with self._errors("read"):
            row = records.values_list("authenticated", "data", "revoked").first()
        if row is None:
            return None
        authenticated, data, revoked_at = row
        if is_revoked(authenticated, [] if revoked_at is None else [revoked_at]):
            return None
        return SessionRecord(dict(identity), authenticated, json.loads(data), len(data))

    def touch(self, sids: Collection[str]) -> set[str]:
        """Renew the TTL of records with one UPDATE. Expired records stay expired."""
        if not sids:
            return set()
        expires = self._server.ago(-self.settings.sessions_ttl)
        alive = self._alive().filter(sid__in=sids)

        def touch() -> set[str]:
            if alive.update(expires=expires) == len(set(sids)):
                return set()
            return set(sids) - set(alive.values_list("sid", flat=True))

        return self._write("touched", touch)

    def delete(self, sids: Collection[str]) -> None:
        """Delete records with one DELETE."""
        if sids:
            self._write("deleted", self._database.rows(Session).filter(sid__in=sids).delete)

    def revoke(self, condition: Identity) -> float:
        """Store the time of a revocation with one INSERT. It also applies to records that are saved later."""
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
            # This does not join the caller's transaction, because `disconnect(using=...)` may not wait for its commit.
            self._database.outside(partial(self._write, "revoked", revoke))
        return now

    @retried_read
    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the last time at which matching sessions were revoked, or 0."""
        keys = {key for identity in identities for key in condition_keys(identity)}
        with self._errors("read"):
            times = dict(self._database.rows(Revocation).filter(condition__in=keys).values_list("condition", "at"))
        return [max((times.get(key, 0.0) for key in condition_keys(identity)), default=0.0) for identity in identities]

    def prune(self, *, limit: int = 1000) -> int:
        """Delete expired records, the oldest first, with one DELETE, and revocations that affect no record.

        Records that another process is deleting are skipped.
        """
        expired = self._database.rows(Session).filter(expires__lte=self._server.ago(0))
        outdated = self._server.ago(self.settings.sessions_ttl + CLOCK_MARGIN)
        oldest = expired.select_for_update(skip_locked=True).order_by("expires").values("sid")[:limit]

        def prune() -> int:
            pruned, _ = expired.filter(sid__in=oldest).delete()
            self._database.rows(Revocation).filter(at__lte=outdated).delete()
            return pruned

        return self._write("pruned", prune)

    def _write(self, action: str, call: Callable[[], T]) -> T:
        with self._errors(action):
            return self._database.write(call)

    def _errors(self, action: str) -> AbstractContextManager[None]:
        return self._database.store_errors(f"Session records could not be {action}")

    def _alive(self) -> QuerySet[Session]:
        return self._database.rows(Session).filter(expires__gt=self._server.ago(0))
