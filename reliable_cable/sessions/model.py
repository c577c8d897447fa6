"""Sessions in the project's database."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from django.db import Error
from django.db.models import QuerySet

from reliable_cable.exceptions import StoreError
from reliable_cable.models import Session
from reliable_cable.threads import run_store

from .base import SessionRecord, SessionStore

T = TypeVar("T")


class ModelSessionStore(SessionStore):
    """Keeps sessions in the `Session` model, on the database that `settings.database` names.

    Every method raises `StoreError` where the database fails.
    """

    uses_database = True

    def save(self, records: Mapping[str, SessionRecord]) -> None:
        """Insert or replace records with one statement; the first one that is not JSON raises, and none is stored."""
        if self.settings.sessions_ttl == 0 or not records:
            return
        expires = self.clock() + self.settings.sessions_ttl
        # Data goes in as JSON text in a JSON string: PostgreSQL refuses JSON that holds U+0000 or half a surrogate
        # pair, both of which clients can send, and one such record would keep all others of the batch from being saved.
        rows = [
            Session(sid=sid, user=record.user, data=json.dumps(record.data), expires=expires)
            for sid, record in records.items()
        ]
        with _store_errors("saved"):
            self._sessions().bulk_create(
                rows, update_conflicts=True, unique_fields=["sid"], update_fields=["user", "data", "expires"]
            )

    def load(self, sid: str) -> SessionRecord | None:
        """Return a record."""
        # A client may send anything as a session id, also what a database takes for an error.
        if not sid.isascii() or not sid.isprintable():
            return None
        with _store_errors("read"):
            found = self._alive().filter(sid=sid).values_list("user", "data").first()
        return SessionRecord(found[0], json.loads(found[1])) if found else None

    def touch(self, sids: Collection[str]) -> None:
        """Give records a new time with one UPDATE; what has expired stays so."""
        if sids:
            expires = self.clock() + self.settings.sessions_ttl
            with _store_errors("touched"):
                self._alive().filter(sid__in=sids).update(expires=expires)

    def delete(self, sids: Collection[str]) -> None:
        """Remove records with one DELETE."""
        if sids:
            with _store_errors("deleted"):
                self._sessions().filter(sid__in=sids).delete()

    def prune(self, *, limit: int = 1000) -> int:
        """Delete the oldest of the expired records with one DELETE."""
        expired = self._sessions().filter(expires__lte=self.clock())
        oldest = expired.order_by("expires").values("sid")[:limit]
        with _store_errors("pruned"):
            pruned, _ = expired.filter(sid__in=oldest).delete()
        return pruned

    async def _run(self, call: Callable[[], T]) -> T:
        return await run_store(call)

    def _sessions(self) -> QuerySet[Session]:
        return Session.objects.using(self.settings.database)

    def _alive(self) -> QuerySet[Session]:
        return self._sessions().filter(expires__gt=self.clock())


@contextmanager
def _store_errors(done: str) -> Iterator[None]:
    try:
        yield
    except Error as error:
        raise StoreError(f"Session records could not be {done}: {error}") from error
