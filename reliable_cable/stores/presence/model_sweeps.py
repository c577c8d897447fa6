"""Decides whether expired sessions may be removed from the database, or whether an outage kept them from renewal."""

from typing import Any, Final

from django.db.models import Count, Q, QuerySet

from reliable_cable.models import PresenceSession, PresenceSweep
from reliable_cable.stores.database.database import Database
from reliable_cable.stores.database.server import DatabaseServer

#: How often the time of the last search for expired sessions is stored, as a fraction of `outage`.
SWEEP_SHARE: Final = 1 / 8


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

    def may_expire(self) -> bool:
        """Record this search for expired sessions. Return whether there are any that may be removed."""
        sessions = self._database.rows(PresenceSession)
        counts = sessions.aggregate(
            sessions=Count("key"), overdue=Count("key", filter=Q(expires__lte=self._server.ago(0)))
        )
        sweep: Any = self._rows.annotate(now=self._server.now()).first()
        if not counts["sessions"]:
            if sweep is not None:
                self._database.write(self._rows.delete)
            return False
        if sweep is None or abs(sweep.now - sweep.at) > self._outage * SWEEP_SHARE:
            sweep = self._database.write(self._record)
        return bool(counts["overdue"]) and (sweep is None or sweep.now >= sweep.grace_end)

    def _record(self) -> Any:
        sweep: Any = self._rows.select_for_update().annotate(now=self._server.now()).first()
        if sweep is None:
            self._rows.bulk_create([PresenceSweep(pk=1, at=self._server.now())], ignore_conflicts=True)
            return None
        if sweep.now - sweep.at > self._outage:
            sweep.grace_end = sweep.now + self._grace
        self._rows.update(at=sweep.now, grace_end=sweep.grace_end)
        return sweep

    @property
    def _rows(self) -> QuerySet[PresenceSweep]:
        return self._database.rows(PresenceSweep)
