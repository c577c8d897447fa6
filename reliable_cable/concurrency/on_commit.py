"""Delays calls until the caller's transactions have committed.

Calls that run after a commit raise no errors: the caller's data is stored by then, and later `on_commit` hooks must
still run. Errors are passed to a callback.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from asgiref.sync import SyncToAsync
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from reliable_cable.exceptions import BroadcastError, InvalidOption

from .threads import has_own_thread

#: A function that registers `on_commit` hooks for databases with an open transaction. Its argument is their aliases.
Schedule = Callable[[Sequence[str]], None]


def is_manual(connection: BaseDatabaseWrapper) -> bool:
    """Return whether autocommit is off on a connection, outside of `atomic()`.

    Django runs no `on_commit` hooks in this mode.
    """
    # A closed connection will be opened with the autocommit mode of its settings.
    autocommit = connection.settings_dict["AUTOCOMMIT"] if connection.connection is None else connection.autocommit
    return not (connection.in_atomic_block or autocommit)


def in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction is open on a connection."""
    return connection.in_atomic_block or is_manual(connection)


#: Returns whether calls wait for the commit of the transaction on a connection. Only `reliable_cable.testing` replaces
#: this function, because the transaction of a `TestCase` never commits.
must_wait: Callable[[BaseDatabaseWrapper], bool] = in_transaction


@dataclass(frozen=True, slots=True)
class CommitHook:
    """A callable that `call_after_commit` passes to Django's `on_commit` for one database."""

    committed: Callable[[str], None]
    database: str

    def __call__(self) -> None:
        """Report the commit on the database."""
        self.committed(self.database)


def check_using(using: str | None, *, immediate: bool = False) -> None:
    """Check the option `using`.

    Raises:
        InvalidOption: `using` is not a key of `DATABASES`, or it was given with `immediate=True`.
    """
    if using is None:
        return
    if immediate:
        raise InvalidOption("Give using or immediate=True, not both.")
    aliases = list(connections)
    if using not in aliases:
        raise InvalidOption(f"using is {using!r}; it must be a key of DATABASES: {', '.join(map(repr, aliases))}.")


def defer_to_commit(schedule: Schedule, using: str | None) -> bool:
    """Call `schedule` at once if a transaction is open in this thread, so that it can register `on_commit` hooks.

    Args:
        schedule: called with the aliases of the databases that have an open transaction; not called if there are none.
        using: consider only the transaction on this database. None means all databases.

    Returns:
        Whether a transaction is open. If not, the caller does its work at once.
    """
    databases = [
        connection.alias
        for connection in connections.all(initialized_only=True)
        if using in (None, connection.alias) and must_wait(connection)
    ]
    if databases:
        schedule(databases)
    return bool(databases)


async def adefer_to_commit(schedule: Schedule, using: str | None) -> bool:
    """Async twin of `defer_to_commit`. It considers the transactions of the thread that runs the caller's ORM calls.

    The result is False if that thread is the one that the whole process shares. A transaction that is open there may
    belong to other code, and the thread may be busy for a long time.
    """
    if not has_own_thread():
        return False
    return await SyncToAsync(defer_to_commit, thread_sensitive=True)(schedule, using)


def check_hooks(databases: Iterable[str], remedy: str = "pass immediate=True to send it at once") -> None:
    """Check that Django runs `on_commit` hooks for the open transactions on these databases.

    Args:
        databases: the aliases of the databases.
        remedy: what the caller can do instead, for the error message.

    Raises:
        BroadcastError: autocommit is off on one of the databases, so that Django runs no hooks there.
    """
    for database in databases:
        if is_manual(connections[database]):
            raise BroadcastError(
                f"Nothing was sent: autocommit is off on database {database!r} (set_autocommit(False)), and Django "
                f"runs no on_commit hooks there. Use transaction.atomic(), or {remedy}."
            )


def call_after_commit(
    call: Callable[[], object], databases: Sequence[str], *, failed: Callable[[Exception], object]
) -> None:
    """Run a call after the open transactions on all these databases have committed, unless one is rolled back.

    Args:
        call: called once, after the last of the commits.
        databases: the aliases of the databases.
        failed: called with the error if `call` raises one.

    Raises:
        BroadcastError: autocommit is off on one of the databases, so that Django runs no hooks there.
    """
    check_hooks(databases)
    pending = set(databases)

    def committed(database: str) -> None:
        if database not in pending:
            return  # the hook was called before: tests call hooks themselves
        pending.discard(database)
        if pending:
            return
        try:
            call()
        except Exception as error:
            failed(error)

    for database in databases:
        transaction.on_commit(CommitHook(committed, database), using=database)
