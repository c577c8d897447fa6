"""Decides which process searches for expired sessions, and whether an outage has prevented the renewal of sessions."""

from typing import Any, Final

from django.db.models import Exists, QuerySet
from django.db.models.expressions import Combinable

from reliable_cable.models import PresenceSession, PresenceSweep
from reliable_cable.stores.database.database import Database
from reliable_cable.stores.database.server import DatabaseServer

from .base import SEARCH_INTERVAL

#: The time between two searches is at least `SEARCH_INTERVAL`, or this fraction of `outage` if that is shorter.
SEARCH_SHARE: Final = 1 / 8


class Sweeps:
    """Records when the processes search for expired sessions.

    Args:
        database: the database.
        server: the server of the database, which reports the time.
        outage: the time, in seconds, after which an outage is assumed if no process has searched.
        grace: how long, in seconds, no sessions are removed after an outage.
    """

    def __init__(self, database: Database, server: DatabaseServer, *, outage: float, grace: float) -> None:
        self._database = database
        self._server = server
        self._outage = outage
        self._grace = grace
        #: The minimum time between two searches, in seconds. A search reads the rows of all sessions.
        self._interval = min(SEARCH_INTERVAL, outage * SEARCH_SHARE)

    @property
    def missing(self) -> Combinable:
        """A condition that is true if no search is recorded."""
        return ~Exists(self._rows)

    def begin(self) -> None:
        """Record the present time as that of a search, unless a search is recorded.

        A transaction in which a session joins calls this, so that the next search notices an outage that began after
        the join.
        """
        self._insert()

    def may_expire(self) -> bool:
        """Return whether the caller should search for expired sessions.

        If there are sessions, and the last search is not too recent, the time of this call is recorded as a search. The
        result is False if there are no sessions, if the last search is too recent, if no search was recorded, or if an
        outage ended less than `grace` seconds ago.
        """
        sweep: Any = self._rows.annotate(now=self._server.now()).first()
        sessions = self._database.rows(PresenceSession)
        if not sessions.exists():
            # A time without sessions is not an outage.
            if sweep is not None:
                self._database.write(self._rows.filter(~Exists(sessions)).delete)
            return False
        return (sweep is None or self._is_due(sweep)) and self._database.write(self._record)

    def _is_due(self, sweep: Any) -> bool:
        # If the clock was set back, the time of the last search is in the future.
        return bool(abs(sweep.now - sweep.at) >= self._interval)

    def _record(self) -> bool:
        sweep: Any = self._rows.select_for_update().annotate(now=self._server.now()).first()
        if sweep is None:
            # The time of the last search is not known: servers of earlier releases do not call `begin`, and a process
            # that saw no sessions may have deleted the row during the first join.
            self._insert(grace_end=self._server.ago(-self._grace))
            return False
        if not self._is_due(sweep):
            return False  # another process is searching
        if sweep.now - sweep.at > self._outage:
            sweep.grace_end = sweep.now + self._grace
        self._rows.update(at=sweep.now, grace_end=sweep.grace_end)
        return bool(sweep.now >= sweep.grace_end)

    def _insert(self, **values: Any) -> None:
        self._rows.bulk_create([PresenceSweep(pk=1, at=self._server.now(), **values)], ignore_conflicts=True)

    @property
    def _rows(self) -> QuerySet[PresenceSweep]:
        return self._database.rows(PresenceSweep)
