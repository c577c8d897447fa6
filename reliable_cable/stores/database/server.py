"""The clock of a database server, and the lineage of its data.

The lineage is a name for the data set of a server. A new one begins when data may have been lost, for example by a
failover or a restored backup.
"""

import time
from collections.abc import Callable

from django.db import InternalError, NotSupportedError, ProgrammingError, connections
from django.db.models import BooleanField, CharField, ExpressionWrapper, FloatField, Func, Q, Value
from django.db.models.expressions import Combinable, Expression

from .database import Database


class _PresentTime(Func):
    """An SQL expression for the time at which PostgreSQL evaluates the expression.

    If a statement waits for a locked row, and the row changes during the wait, PostgreSQL evaluates the expression
    again after the wait.
    """

    template = "EXTRACT(EPOCH FROM CLOCK_TIMESTAMP())::double precision"
    output_field = FloatField()


class _StatementTime(Func):
    """An SQL expression for the time at which the statement began.

    Its value does not change during the statement, so a condition with it can use an index.
    """

    template = "EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP())::double precision"
    output_field = FloatField()


class _Lineage(Func):
    """An SQL expression for the identifier and the timeline of a PostgreSQL cluster.

    A new timeline begins when a standby is promoted or a backup is restored. If a dump is loaded into another cluster,
    the identifier differs.
    """

    # PostgreSQL evaluates this subquery once in each statement, not once for each row.
    template = (
        "(SELECT system_identifier::text || '.' || SUBSTR(pg_walfile_name(pg_current_wal_lsn()), 1, 8) "
        "FROM pg_control_system())"
    )
    output_field = CharField()


class DatabaseServer:
    """The clock of one database, and the id of its data set (the lineage).

    All processes that share a PostgreSQL database use the clock of the server. An SQLite file belongs to one host, so
    its processes use the clock of that host.

    Args:
        database: the database whose server is used.
        clock: a clock for tests, which returns seconds since 1970. It replaces the server's or this host's clock.
    """

    def __init__(self, database: Database, clock: Callable[[], float] | None = None) -> None:
        self._database = database
        self._clock = clock
        #: Whether the server reports its lineage; None until `prepare` has been called.
        self._reports_lineage: bool | None = None

    # -- the time -----------------------------------------------------------------------------------------------------

    def now(self) -> Expression:
        """Return an expression for the current time, which a statement can store or select.

        On PostgreSQL, if the statement waits for a locked row, and the row changes during the wait, this is the time
        after the wait.
        """
        return _PresentTime() if self.has_clock else Value(self._host_time(), output_field=FloatField())

    def now_sql(self) -> tuple[str, list[float]]:
        """Return the expression of `now` as SQL text for PostgreSQL, and the parameters of this text."""
        return (_PresentTime.template, []) if self.has_clock else ("%s", [self._host_time()])

    def ago(self, seconds: float) -> Combinable:
        """Return an expression for the time `seconds` ago, which a statement can compare with a column.

        With a negative number of seconds, the time is in the future.
        """
        if self.has_clock:
            return _StatementTime() - Value(seconds, output_field=FloatField())
        return Value(self._host_time() - seconds, output_field=FloatField())

    def time(self) -> float:
        """Return the current time in seconds since 1970. On PostgreSQL, this takes a query.

        Raises:
            DatabaseError: the server could not be reached.
        """
        if not self.has_clock:
            return self._host_time()
        with connections[self._database.alias].cursor() as cursor:
            cursor.execute(f"SELECT {_PresentTime.template}")
            (now,) = cursor.fetchone()
        return float(now)

    @property
    def is_postgresql(self) -> bool:
        """Whether the server is PostgreSQL."""
        return connections[self._database.alias].vendor == "postgresql"

    @property
    def has_clock(self) -> bool:
        """Whether times come from the server's clock. If False, times come from this host's clock."""
        return self._clock is None and self.is_postgresql

    def _host_time(self) -> float:
        return time.time() if self._clock is None else self._clock()

    # -- the lineage --------------------------------------------------------------------------------------------------

    @property
    def reports_lineage(self) -> bool:
        """Whether the server reports its lineage. The value is False until `prepare` has been called."""
        return bool(self._reports_lineage)

    def lineage(self) -> Expression:
        """Return an expression for the lineage of the server's data; `""` if it is unknown."""
        return _Lineage() if self._reports_lineage else Value("", output_field=CharField())

    def lineage_sql(self, column: str) -> str:
        """Return the expression of `lineage` as SQL text for PostgreSQL; `column` if the lineage is unknown."""
        return _Lineage.template if self._reports_lineage else column

    def read_lineage(self) -> str:
        """Return the lineage of the server's data; `""` if it is unknown. If the server reports it, this takes a query.

        Raises:
            DatabaseError: the server could not be reached.
        """
        if not self._reports_lineage:
            return ""
        with connections[self._database.alias].cursor() as cursor:
            cursor.execute(f"SELECT {_Lineage.template}")
            (lineage,) = cursor.fetchone()
        return str(lineage)

    def is_foreign(self, lineage: str) -> Combinable:
        """Return a condition that is true for rows whose lineage differs from that of the server's data.

        Args:
            lineage: the name of the column that contains the lineage of a row. If a row's lineage is unknown, the
                column contains `""`, and the condition is false. If the server does not report its lineage, the
                condition is false for all rows.
        """
        if not self._reports_lineage:
            return Value(False)
        return ExpressionWrapper(~Q(**{f"{lineage}__in": ["", _Lineage()]}), output_field=BooleanField())

    def prepare(self) -> None:
        """Find out whether the server reports its lineage. Only the first call takes a query.

        The query runs outside of the caller's transaction, because it fails on some servers, and a failed query breaks
        a transaction.

        Raises:
            DatabaseError: the server could not be reached. The next call tries again.
        """
        if self._reports_lineage is None:
            self._reports_lineage = self.is_postgresql and self._database.outside(self._may_query_lineage)

    def _may_query_lineage(self) -> bool:
        def query() -> None:
            with connections[self._database.alias].cursor() as cursor:
                cursor.execute(f"SELECT {_Lineage.template}")

        try:
            self._database.write(query)
        except (ProgrammingError, NotSupportedError, InternalError):
            # Some hosting services do not have these functions, or do not permit their use.
            return False
        return True
