"""Runs calls after the commit of the caller's transactions.

Errors are not raised after a commit: the caller's work is stored by then, and later `on_commit` hooks must still run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from asgiref.sync import SyncToAsync
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from reliable_cable.exceptions import BroadcastError, CableError, InvalidOption
from reliable_cable.signals import broadcast_failed

from .threads import has_own_thread

logger = logging.getLogger("reliable_cable")

#: Takes the aliases of the databases with an open transaction, and registers a call for after their commit.
Schedule = Callable[[Sequence[str]], None]


def is_manual(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the caller commits by hand: autocommit is off, and `atomic()` was not entered.

    Django has no `on_commit` hooks in such a transaction.
    """
    # A connection that is not open yet will take its mode from the settings.
    autocommit = connection.settings_dict["AUTOCOMMIT"] if connection.connection is None else connection.autocommit
    return not (connection.in_atomic_block or autocommit)


def in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the calling code has a transaction open on a connection."""
    return connection.in_atomic_block or is_manual(connection)


def check_using(using: str | None, *, immediate: bool = False) -> None:
    """Check the option `using`.

    Raises:
        InvalidOption: it is not a key of `DATABASES`, or `immediate` is True.
    """
    if using is None:
        return
    if immediate:
        raise InvalidOption("Give using or immediate=True, not both.")
    aliases = list(connections)
    if using not in aliases:
        raise InvalidOption(f"using is {using!r}; it must be a key of DATABASES: {', '.join(map(repr, aliases))}.")


def defer_to_commit(schedule: Schedule, using: str | None) -> bool:
    """Call `schedule` with the databases whose transactions are open in this thread, if any are.

    Args:
        schedule: is not called if no transaction is open.
        using: consider the transaction on this database only. None considers all databases.

    Returns:
        Whether a transaction is open.
    """
    databases = [
        connection.alias
        for connection in connections.all(initialized_only=True)
        if using in (None, connection.alias) and in_transaction(connection)
    ]
    if databases:
        schedule(databases)
    return bool(databases)


async def adefer_to_commit(schedule: Schedule, using: str | None) -> bool:
    """Async twin of `defer_to_commit`, for the thread that runs the ORM calls of the running code.

    The thread that the whole process shares is not considered. A transaction that is open there may belong to other
    code, and the thread may be busy for a long time.
    """
    if not has_own_thread():
        return False
    return await SyncToAsync(defer_to_commit, thread_sensitive=True)(schedule, using)


def check_hooks(databases: Iterable[str], remedy: str = "pass immediate=True to send it at once") -> None:
    """Check that Django runs `on_commit` hooks for the open transactions on these databases.

    Args:
        databases: their aliases.
        remedy: what the caller can do instead.

    Raises:
        BroadcastError: autocommit is off on one of them.
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
    """Run a call after the open transactions on all these databases have committed; never if one is rolled back.

    Args:
        call: takes no arguments.
        databases: their aliases.
        failed: called with an error that `call` raised.

    Raises:
        BroadcastError: autocommit is off on one of them.
    """
    check_hooks(databases)
    waiting = set(databases)

    def committed(database: str) -> None:
        waiting.discard(database)
        if waiting:
            return
        try:
            call()
        except Exception as error:
            failed(error)

    for database in databases:
        transaction.on_commit(partial(committed, database), using=database)


def report_failure(store: type, streams: Iterable[str], error: Exception) -> None:
    """Log a broadcast that failed after the commit, and send `broadcast_failed` for each of its streams.

    Args:
        store: the class of the store that failed.
        streams: their names.
        error: why it failed.
    """
    names = list(dict.fromkeys(streams))
    # An error of this package explains itself. Any other error is a bug, so its traceback is logged.
    trace = None if isinstance(error, CableError) else error
    logger.error("A broadcast to %s failed after the commit: %s", ", ".join(map(repr, names)), error, exc_info=trace)
    for name in names:
        broadcast_failed.send_robust(store, stream=name, error=error)
