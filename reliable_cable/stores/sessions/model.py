"""Sessions in the project's database."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

from django.db.models import QuerySet, Subquery

from reliable_cable.concurrency.threads import run_store, run_store_write
from reliable_cable.conf import CableSettings
from reliable_cable.identity import Identity, canonical, condition_key, condition_keys
from reliable_cable.models import Revocation, Session
from reliable_cable.stores.database.database import Database, repeated_read
from reliable_cable.stores.database.server import DatabaseServer

from .base import CLOCK_MARGIN, SessionRecord, SessionStore, is_revoked, is_session_id

T = TypeVar("T")


class ModelSessionStore(SessionStore):
    """Keeps sessions in the `Session` model, on the database that `settings.database` names.

    Times come from the database's clock on PostgreSQL, and from this host's clock elsewhere. Every method raises
    `StoreError` if the database fails.

    Args:
        settings: `database` and `sessions_ttl`.
        clock: replaces that clock in tests.
    """

    uses_database = True

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock or time.time)
        self._database = Database(settings)
        self._server = DatabaseServer(self._database, clock)

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Insert or replace records with one statement; the first one that is not JSON raises, and none is stored."""
        if self.settings.sessions_ttl == 0 or not records:
            return
        expires = self._server.ago(-self.settings.sessions_ttl)
        # Data goes in as JSON text in a JSON string: PostgreSQL refuses JSON that holds U+0000 or half a surrogate
        # pair, both of which clients can send, and one such record would keep all others of the batch from being saved.
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
            self._sessions().bulk_create,
            rows,
            update_conflicts=True,
            unique_fields=["sid"],
            update_fields=["identity", "authenticated", "data", "expires"],
        )
        self._write("saved", save)

    @repeated_read
    def load(self, sid: str, identity: Identity) -> SessionRecord | None:
        """Return a record, with one SELECT."""
        if not is_session_id(sid):
            return None
        revoked = self._revocations().filter(condition__in=condition_keys(identity)).order_by("-at").values("at")[:1]
        mine = self._alive().filter(sid=sid, identity=canonical(identity)).annotate(revoked=Subquery(revoked))
        with self._errors("read"):
            found = mine.values_list("authenticated", "data", "revoked").first()
        if found is None or is_revoked(found[0], [at for at in found[2:] if at is not None]):
            return None
        return SessionRecord(dict(identity), found[0], json.loads(found[1]))

    def touch(self, sids: Collection[str]) -> set[str]:
        """Give records a new time with one UPDATE; what has expired stays so."""
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
        """Remove records with one DELETE."""
        if sids:
            self._write("deleted", self._sessions().filter(sid__in=sids).delete)

    def revoke(self, condition: Identity) -> float:
        """Store the time with one INSERT, so that matching records that are saved late are void as well."""
        with self._errors("revoked"):
            now = self._server.time()
        if self.settings.sessions_ttl:
            revoke = partial(
                self._revocations().bulk_create,
                [Revocation(condition=condition_key(condition), at=now)],
                update_conflicts=True,
                unique_fields=["condition"],
                update_fields=["at"],
            )
            # Outside of the caller's transaction, because `disconnect(using=...)` may not wait for its commit.
            self._database.outside(partial(self._write, "revoked", revoke))
        return now

    @repeated_read
    def revoked(self, identities: Sequence[Identity]) -> list[float]:
        """Return for each identity the last time that sessions of its kind were revoked."""
        keys = {key for identity in identities for key in condition_keys(identity)}
        with self._errors("read"):
            times = dict(self._revocations().filter(condition__in=keys).values_list("condition", "at"))
        return [max((times.get(key, 0.0) for key in condition_keys(identity)), default=0.0) for identity in identities]

    def prune(self, *, limit: int = 1000) -> int:
        """Delete the oldest of the expired records with one DELETE, and what was revoked before all that are left."""
        expired = self._sessions().filter(expires__lte=self._server.ago(0))
        voided = self._server.ago(self.settings.sessions_ttl + CLOCK_MARGIN)
        oldest = expired.order_by("expires").values("sid")[:limit]

        def prune() -> int:
            pruned, _ = expired.filter(sid__in=oldest).delete()
            self._revocations().filter(at__lte=voided).delete()
            return pruned

        return self._write("pruned", prune)

    def _write(self, done: str, call: Callable[[], T]) -> T:
        with self._errors(done):
            return self._database.write(call)

    def _errors(self, done: str) -> AbstractContextManager[None]:
        return self._database.read_errors(f"Session records could not be {done}")

    def time(self) -> float:
        """Return the present time by the database's clock on PostgreSQL, by this host's elsewhere."""
        with self._database.read_errors("The time cannot be read"):
            return self._server.time()

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """Return the clock of the database on PostgreSQL, and none elsewhere."""
        return {f"database {self.settings.database!r}": self.time} if self._server.has_clock else {}

    async def _run(self, call: Callable[[], T]) -> T:
        return await run_store(call)

    async def _run_write(self, call: Callable[[], T]) -> T:
        return await run_store_write(call)

    def _sessions(self) -> QuerySet[Session]:
        return Session.objects.using(self.settings.database)

    def _revocations(self) -> QuerySet[Revocation]:
        return Revocation.objects.using(self.settings.database)

    def _alive(self) -> QuerySet[Session]:
        return self._sessions().filter(expires__gt=self._server.ago(0))
