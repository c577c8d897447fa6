"""Records the times at which a database may have lost messages, because of a failover or a restored backup.

A *lineage* is the name of an unbroken data set (see stores/database/server.py). After a failover or a restore, the
database has another lineage. The table `Lineage` contains the time at which each lineage was first seen, or at which
`renew` was last called for it. The first lineage has the time 0 until `renew` is called. Messages from before the time
of the current lineage may be lost, even whole streams.
"""

from django.db.models import FloatField, Value
from django.db.models.expressions import Combinable

from reliable_cable.models import Lineage
from reliable_cable.stores.database.database import Database
from reliable_cable.stores.database.server import DatabaseServer


class Lineages:
    """The lineages that a database has had.

    Args:
        database: the database with the table `Lineage`.
        server: the server of the database, which reports the current lineage.
    """

    def __init__(self, database: Database, server: DatabaseServer) -> None:
        self._database = database
        self._server = server
        self._recorded = False

    def prepare(self) -> None:
        """Record the current lineage, once in each process, so that a later change is noticed.

        Raises:
            DatabaseError: the server could not be reached. The next call tries again.
        """
        self._server.prepare()
        if self._server.reports_lineage and not self._recorded:
            self.began()
            self._recorded = True

    def ended(self) -> Combinable:
        """Return a condition for queries that is true for streams whose epoch began in another lineage of the database.

        The database may have lost the newest messages of such an epoch. Reads ignore the epoch, and the next append
        ends it.

        Raises:
            DatabaseError: the server could not be reached.
        """
        self.prepare()
        return self._server.is_foreign("lineage")

    def began(self) -> float:
        """Return the time, in seconds since 1970, before which messages may have been lost; 0 if none can be lost.

        If the server reports its lineage, and the table has no row for it, one is inserted.

        Raises:
            DatabaseError: the server could not be reached.
        """
        rows = self._database.rows(Lineage).filter(name=self._server.lineage())
        began = rows.values_list("began", flat=True).first()
        if began is None and self._server.reports_lineage:
            self._database.outside(lambda: self._database.write(self._record))
            began = rows.values_list("began", flat=True).first()
        return began or 0

    def _record(self) -> None:
        rows = self._database.rows(Lineage)
        # The time of the first lineage is 0, because no data are known to have been lost before it.
        began = self._server.now() if rows.exists() else Value(0, output_field=FloatField())
        rows.bulk_create([Lineage(name=self._server.lineage(), began=began)], ignore_conflicts=True)

    def renew(self) -> None:
        """Record that all messages from before now may be lost, because a backup was restored."""
        rows = self._database.rows(Lineage)
        if not rows.filter(name=self._server.lineage()).update(began=self._server.now()):
            rows.create(name=self._server.lineage(), began=self._server.now())
