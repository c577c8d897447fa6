"""Transactions of the model stores, with retries after conflicts, and the conversion of database errors."""

import os
import random
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

from django.db import Error, InterfaceError, OperationalError, connections, transaction
from django.db.models import Model, QuerySet

from reliable_cable.concurrency.on_commit import in_transaction
from reliable_cable.concurrency.threads import submit_store
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, CableError, StoreError, reason
from reliable_cable.logs import logger

from .begin import begun_by_statement, can_begin
from .fair_lock import FairLock

T = TypeVar("T")
M = TypeVar("M", bound=Model)

#: How long, in seconds, to retry a write that was rolled back because of a conflict with another transaction.
WRITE_RETRY_TIME = 15.0
#: How long, in seconds, to retry a read that failed because of a conflict.
READ_RETRY_TIME = 5.0
#: The longest delay, in seconds, before a retry.
MAX_RETRY_DELAY = 0.02
#: How long, in milliseconds, SQLite waits for the write lock in one attempt. In a longer wait, SQLite would check the
#: lock only every 100 ms, and might not get the lock for many seconds while another process keeps writing.
LOCK_TIMEOUT = 10
#: The maximum number of rows to examine, number or delete in one transaction.
ROWS_PER_TRANSACTION = 500

#: The advice in an error message if a call needs a lock that the caller's own transaction holds.
OWN_LOCK_REMEDY = "wait for its commit (leave out immediate=True and using, or make the call afterwards)"

#: The pause after a write to SQLite, as a fraction of the write's duration. During the pause, the process leaves the
#: lock free. Without the pause, the project's own transactions would hardly ever get the lock while broadcasts are
#: queued.
PAUSE_SHARE = 0.25
#: The maximum pause, in seconds, after a write to SQLite.
MAX_PAUSE = 0.05

#: The error codes of conflicts. A transaction with a conflict was rolled back, and may succeed when it is retried.
_SQLITE_CONFLICTS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_POSTGRES_CONFLICTS = {"40001", "40P01"}

#: Whether writes to SQLite are retried for the `timeout` in the database's OPTIONS, not for `WRITE_RETRY_TIME`. It is
#: True for a call whose caller may hold the write lock while it waits for the call (see `outside`), for deletions that
#: later calls repeat (see `delete_soon`), and in `write_soon`.
_short_wait: ContextVar[bool] = ContextVar("reliable_cable_short_wait", default=False)


class _WriteQueue:
    """The queue in which the threads of one process wait to write to an SQLite file."""

    def __init__(self) -> None:
        self._lock = FairLock()
        #: The id of the thread that has the lock; 0 if no thread has it.
        self._owner = 0
        self._pause_end = 0.0

    @contextmanager
    def wait(self, timeout: float) -> Iterator[None]:
        """Return a context manager that holds the queue's lock.

        If the lock is not free within `timeout` seconds, the block runs without it.
        """
        thread = threading.get_ident()
        if self._owner == thread:
            # This thread already holds the lock, because an `on_commit` hook of its last write makes this call.
            yield
            return
        with self._lock.hold(timeout) as held:
            began = max(time.monotonic(), self._pause_end)
            time.sleep(max(0.0, began - time.monotonic()))
            try:
                if held:
                    self._owner = thread
                yield
            finally:
                if held:
                    self._owner = 0
                now = time.monotonic()
                self._pause_end = now + min(PAUSE_SHARE * (now - began), MAX_PAUSE)


#: The queues of writers, by process id and database file.
_queues: dict[tuple[int, str], _WriteQueue] = {}


class _CommitUncertain(OperationalError):
    """Raised if the connection broke during a commit. The transaction may or may not have been stored."""


def is_conflict(error: BaseException) -> bool:
    """Return whether a database error is a conflict with another transaction. If so, nothing was written."""
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary error code. The other bytes distinguish variants of this code.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_CONFLICTS
    return sqlstate(error) in _POSTGRES_CONFLICTS


def sqlstate(error: BaseException) -> str | None:
    """Return the code (SQLSTATE) of a database error of Django on PostgreSQL; None if it has none."""
    cause = error.__cause__
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)  # names in psycopg and psycopg2


def _remedy(error: Error) -> str:
    """Return a sentence with the remedy if a table or a column is missing; `""` for other errors."""
    text = str(error)
    if "reliable_cable_" in text and ("no such" in text or "does not exist" in text):
        return " Run `manage.py migrate`."
    return ""


class Database:
    """Runs the reads and writes of stores in one of Django's databases.

    Args:
        settings: the settings; `database` and `handler_threads` are used. If `handler_threads` is 0, all calls run in
            the calling thread and its transaction. Tests that run in a transaction need this.
    """

    def __init__(self, settings: CableSettings) -> None:
        self.alias = settings.database
        self.threads = settings.handler_threads > 0

    def rows(self, model: type[M]) -> QuerySet[M]:
        """Return a query for all rows of a model in this database."""
        return model._default_manager.using(self.alias)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, call: Callable[[], T]) -> T:
        """Run a call in a short transaction. The stores use this method for all writes except `append_on_commit`.

        On SQLite, the writers of a process wait in a queue, because SQLite does not grant its lock in the order of
        arrival. The transaction takes the write lock when it begins, even if the project's `transaction_mode` differs,
        because SQLite may refuse the lock to a transaction that has already read.

        After a conflict, the transaction is retried for up to `WRITE_RETRY_TIME` seconds. If the connection breaks
        before the commit, it is reopened and the transaction is retried once.

        Inside a transaction of the caller, the call becomes part of that transaction and is not retried.

        Raises:
            django.db.Error: nothing was written, unless the error occurred during the commit. In that case, the data
                may have been written.
        """
        connection = connections[self.alias]
        if in_transaction(connection):
            with transaction.atomic(using=self.alias):
                return call()
        if connection.vendor != "sqlite":
            return self._retry(partial(self._transact, call), WRITE_RETRY_TIME)
        return self._write_in_queue(partial(self._transact, call), connection)

    def _write_in_queue(self, call: Callable[[], T], connection: Any) -> T:
        """Wait in this process's queue of writers. Then run a call, and retry it after conflicts."""
        key = (os.getpid(), str(connection.settings_dict["NAME"]))
        retry_time = (
            float(connection.settings_dict["OPTIONS"].get("timeout", 5.0)) if _short_wait.get() else WRITE_RETRY_TIME
        )
        deadline = time.monotonic() + retry_time
        # Even if the wait in the queue takes all of `retry_time`, the call is attempted once.
        with _queues.setdefault(key, _WriteQueue()).wait(retry_time):
            return self._retry(call, deadline - time.monotonic())

    def write_statement(self, execute: Callable[[bool], T]) -> T:
        """Run a call that executes one statement, as `write` does, but with one round trip less if possible.

        Args:
            execute: the call. Its argument is True if the statement must begin the transaction.
        """
        connection = connections[self.alias]
        if in_transaction(connection) or not can_begin(connection):
            return self.write(partial(execute, False))
        block = partial(begun_by_statement, connection)
        return self._retry(partial(self._transact, partial(execute, True), block), WRITE_RETRY_TIME)

    def _transact(self, call: Callable[[], T], block: Callable[[], AbstractContextManager[None]] | None = None) -> T:
        """Run a call in a transaction. `block` makes its context manager; by default, `atomic()` does."""
        finished = False
        try:
            with ExitStack() as stack:
                with _with_write_lock(connections[self.alias]):
                    stack.enter_context(block() if block else transaction.atomic(using=self.alias))
                result = call()
                finished = True
        except (OperationalError, InterfaceError) as error:
            if finished and not is_conflict(error):
                raise _CommitUncertain(str(error)) from error
            raise
        return result

    def write_soon(self, call: Callable[[], T]) -> T:
        """Run a call as `write` does, but give up earlier on SQLite: after the `timeout` in the database's OPTIONS."""
        return _with_short_wait(partial(self.write, call))

    def write_broadcast(self, call: Callable[[], T]) -> T:
        """Run a call as `write` does, and convert database errors to broadcast errors.

        Raises:
            BroadcastError: the transaction was rolled back.
            BroadcastUncertain: the connection broke during the commit.
        """
        with self.broadcast_errors():
            return self.write(call)

    def outside(self, call: Callable[[], T], error: type[CableError] = StoreError) -> T:
        """Run a call outside of the caller's transaction. If a transaction is open, the call runs in a store thread.

        If `handler_threads` is 0, the call runs in the caller's transaction.

        Args:
            call: the call to run.
            error: the class of the error to raise if the caller's transaction took SQLite's write lock when it began.
                The call could never get the lock, because the caller waits for the call.
        """
        connection = connections[self.alias]
        if not (self.threads and in_transaction(connection)):
            return call()
        if connection.vendor != "sqlite":
            return submit_store(call).result()
        if connection.in_atomic_block and getattr(connection, "transaction_mode", None) in ("IMMEDIATE", "EXCLUSIVE"):
            raise error(
                f"Nothing was stored: the database {self.alias!r} is locked by the caller's own transaction, and "
                f"SQLite allows only one writer: {OWN_LOCK_REMEDY}."
            )
        return submit_store(partial(_with_short_wait, call)).result()

    def delete_soon(self, call: Callable[[], object]) -> None:
        """Schedule a call that deletes old rows, in a store thread. If `handler_threads` is 0, run the call now.

        If the call fails, or if the process ends before the call, the rows remain until another call deletes them.
        """

        def attempt() -> None:
            try:
                _with_short_wait(call)
            except Exception:
                logger.warning("Old rows of reliable_cable could not be deleted. This is retried later.", exc_info=True)

        if not self.threads:
            attempt()
            return
        try:
            submit_store(attempt)
        except RuntimeError:
            logger.debug("Old rows of reliable_cable are not deleted, because the interpreter is shutting down.")

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, call: Callable[[], T]) -> T:
        """Run a call, and retry it after conflicts for up to `READ_RETRY_TIME` seconds.

        If the connection is broken, it is reopened and the call is retried once. Inside a transaction of the caller,
        nothing is retried.
        """
        if in_transaction(connections[self.alias]):
            return call()
        return self._retry(call, READ_RETRY_TIME)

    # -- errors -------------------------------------------------------------------------------------------------------

    @contextmanager
    def broadcast_errors(self) -> Iterator[None]:
        """Convert database errors to `BroadcastError`, or to `BroadcastUncertain` if a commit failed."""
        try:
            yield
        except _CommitUncertain as error:
            self._recover()
            raise BroadcastUncertain(
                f"The broadcast may or may not have been stored: the commit on database {self.alias!r} failed "
                f"({error}). Repeating it with the same idempotency_key is safe."
            ) from error.__cause__
        except Error as error:
            self._recover()
            remedy = _remedy(error)
            if "locked" in str(error):
                remedy = (
                    f" If the caller's own transaction has the lock, {OWN_LOCK_REMEDY}. Otherwise shorten "
                    f"transactions, or raise the timeout."
                )
            raise BroadcastError(f"Nothing was broadcast: database {self.alias!r}: {reason(error)}.{remedy}") from error

    @contextmanager
    def store_errors(self, message: str) -> Iterator[None]:
        """Convert database errors to a `StoreError` whose text begins with `message`."""
        try:
            yield
        except Error as error:
            self._recover()
            raise StoreError(f"{message}: database {self.alias!r}: {reason(error)}.{_remedy(error)}") from error

    def _recover(self) -> None:
        # Django replaces broken connections only when a request begins or ends, not in commands, workers and shells.
        connection = connections[self.alias]
        if not in_transaction(connection):
            connection.close_if_unusable_or_obsolete()

    # -- retrying -----------------------------------------------------------------------------------------------------

    def _retry(self, call: Callable[[], T], retry_time: float) -> T:
        """Run a call, and retry it after conflicts for up to `retry_time` seconds, and once after a broken connection.

        A `StoreError` is handled in the same way as the database error that caused it.
        """
        connection = connections[self.alias]
        deadline = time.monotonic() + retry_time
        may_reconnect = True
        while True:
            opened = connection.connection
            try:
                return call()
            except (Error, StoreError) as failure:
                error = failure.__cause__ if isinstance(failure, StoreError) else failure
                if error is None or isinstance(error, _CommitUncertain):
                    raise
                if is_conflict(error):
                    if time.monotonic() >= deadline:
                        raise
                elif may_reconnect and opened is not None and _was_broken(connection, opened):
                    may_reconnect = False
                else:
                    raise
                _free_cursors(error)
            # The delay is random, so that the same transactions do not conflict again.
            time.sleep(random.uniform(0, MAX_RETRY_DELAY))  # noqa: S311


def _with_short_wait(call: Callable[[], T]) -> T:
    """Run a call. On SQLite, retry its writes only for the `timeout` in the database's OPTIONS."""
    token = _short_wait.set(True)
    try:
        return call()
    finally:
        _short_wait.reset(token)


@contextmanager
def _with_write_lock(connection: Any) -> Iterator[None]:
    """Return a context manager. On SQLite, a transaction that begins in its block first takes the write lock.

    If the lock is not free within `LOCK_TIMEOUT` milliseconds, the transaction fails.
    """
    if connection.vendor != "sqlite":
        yield
        return
    # Django sets `transaction_mode` when it opens the connection. So the connection is opened before the mode is
    # changed.
    connection.ensure_connection()
    raw = connection.connection
    mode, connection.transaction_mode = connection.transaction_mode, "IMMEDIATE"
    (timeout,) = raw.execute("PRAGMA busy_timeout").fetchone()
    raw.execute(f"PRAGMA busy_timeout = {LOCK_TIMEOUT}")
    try:
        yield
    finally:
        raw.execute(f"PRAGMA busy_timeout = {timeout}")
        connection.transaction_mode = mode


def _free_cursors(error: BaseException | None) -> None:
    """Clear the frames of an error's tracebacks, so that their database cursors are freed now.

    Without this call, the garbage collector would free the cursors later, because Django's errors and their tracebacks
    form reference cycles. The collector may run in the thread that holds SQLite's write lock. To free a cursor, that
    thread waits for the running statement of the cursor's connection. If the statement is waiting for the write lock,
    there is a deadlock.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__


def _was_broken(connection: Any, opened: object) -> bool:
    """Return whether an error was caused by a broken connection. If so, close the connection.

    Args:
        connection: Django's connection.
        opened: the driver's connection before the error. Django may have opened another one after the error.
    """
    if connection.connection is opened and connection.is_usable():
        return False
    connection.close()
    return True
