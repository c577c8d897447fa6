"""Delays calls until the transactions of the caller have committed.

If such a call fails after the commit, its error is passed to a callback. The error is not raised, because the caller's
data is stored, and later `on_commit` hooks must still run.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from asgiref.sync import SyncToAsync
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from reliable_cable.exceptions import BroadcastError, InvalidOption

from .django_thread import has_own_thread

#: A function that registers `on_commit` hooks for databases. It is called with the aliases of these databases.
Schedule = Callable[[Sequence[str]], None]

#: The advice in the error message if Django runs no `on_commit` hooks. `IMMEDIATE` is for functions with the option
#: `immediate`, and `CALL_LATER` for functions without it.
IMMEDIATE: Final = "pass immediate=True to send it at once"
CALL_LATER: Final = "call it after the commit"


def is_manual(connection: BaseDatabaseWrapper) -> bool:
    """Return whether autocommit is off on a connection and no `atomic()` block is active.

    Django's `on_commit` raises an error in this mode.
    """
    # A closed connection will be opened with the autocommit mode of its settings.
    autocommit = connection.settings_dict["AUTOCOMMIT"] if connection.connection is None else connection.autocommit
    return not (connection.in_atomic_block or autocommit)


def runs_hooks(connection: BaseDatabaseWrapper) -> bool:
    """Return whether Django runs `on_commit` hooks for the transaction that is open on a connection."""
    if is_manual(connection):
        return False
    # If autocommit is off, the end of `atomic()` commits nothing. Django then runs the hooks when the application has
    # committed and turns autocommit on. If autocommit is off in the settings, it is assumed to stay off.
    commits = connection.commit_on_exit or not connection.in_atomic_block
    return commits or connection.settings_dict["AUTOCOMMIT"]


def in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction is open on a connection."""
    return connection.in_atomic_block or is_manual(connection)


#: The function that decides whether calls must wait for a commit on a connection. `reliable_cable.testing` replaces it,
#: because the transaction of a `TestCase` never commits.
must_wait: Callable[[BaseDatabaseWrapper], bool] = in_transaction


@dataclass(frozen=True, slots=True)
class CommitHook:
    """A callable that `call_after_commit` passes to Django's `on_commit` for one database."""

    committed: Callable[[str], None]
    database: str

    def __call__(self) -> None:
        """Report that the transaction on the database has committed."""
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
    """If a transaction is open in this thread, call `schedule` now, so that it can register `on_commit` hooks.

    Args:
        schedule: a function that is called with the aliases of the databases with an open transaction. If there are no
            such databases, it is not called.
        using: the alias of a database. Transactions on other databases are ignored. None stands for all databases.

    Returns:
        True if a transaction is open. If the result is False, the caller must do its work now.
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
    """Do the same as `defer_to_commit`, in the thread that runs the async caller's ORM calls.

    If all async code of the process shares this thread, return False without a check. A transaction that is open there
    may belong to other code, and the thread may be busy for a long time.
    """
    if not has_own_thread():
        return False
    return await SyncToAsync(defer_to_commit, thread_sensitive=True)(schedule, using)


def check_hooks(databases: Iterable[str], remedy: str = IMMEDIATE) -> None:
    """Check that Django runs `on_commit` hooks for the open transactions on these databases.

    `call_after_commit` makes the same check. Call this function before other work that must not be done if
    `call_after_commit` is going to fail.

    Args:
        databases: the aliases of the databases.
        remedy: the advice for the caller in the error message, for example `IMMEDIATE`.

    Raises:
        BroadcastError: autocommit is off on one of the databases, so that Django runs no hooks there.
    """
    for database in databases:
        connection = connections[database]
        if not runs_hooks(connection):
            cause = "set_autocommit(False)" if connection.settings_dict["AUTOCOMMIT"] else "AUTOCOMMIT in DATABASES"
            raise BroadcastError(
                f"Nothing was sent: autocommit is off on database {database!r} ({cause}), and Django runs no on_commit "
                f"hooks there. Use transaction.atomic() with autocommit on, or {remedy}."
            )


def call_after_commit(
    call: Callable[[], object],
    databases: Sequence[str],
    *,
    failed: Callable[[Exception], object],
    remedy: str = IMMEDIATE,
) -> None:
    """Run a call after the open transactions on all these databases have committed. After a rollback, do not run it.

    Args:
        call: a function that is called once, after the last commit.
        databases: the aliases of the databases.
        failed: a function that is called with the error if `call` raises one.
        remedy: as for `check_hooks`.

    Raises:
        BroadcastError: autocommit is off on one of the databases, so that Django runs no hooks there.
    """
    check_hooks(databases, remedy)
    pending = set(databases)

    def committed(database: str) -> None:
        if database not in pending:
            return  # the hook was called before, by a test that calls hooks itself
        pending.discard(database)
        if pending:
            return
        try:
            call()
        except Exception as error:
            failed(error)

    for database in databases:
        transaction.on_commit(CommitHook(committed, database), using=database)
