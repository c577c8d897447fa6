"""How the model stores use a database: transactions that are repeated, and what the database's errors mean."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from django.db import Error, InterfaceError, OperationalError, connections, transaction
from django.db.models import Model, QuerySet

from .committing import in_transaction
from .conf import CableSettings
from .exceptions import BroadcastError, BroadcastUncertain, StoreError
from .fair_lock import FairLock
from .threads import submit_store

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Model)
logger = logging.getLogger("reliable_cable")

#: For how long, in seconds, a write is repeated that a conflict with other transactions rolled back.
WRITE_PATIENCE = 15.0
#: The same for a read.
READ_PATIENCE = 5.0
#: The longest pause, in seconds, before a repetition.
PAUSE = 0.02
#: How long, in milliseconds, SQLite waits for the write lock by itself: then it is asked again. Left to itself it soon
#: asks only every 100 ms, and may not get the lock for many seconds while another process writes without a break.
LOCK_TIMEOUT = 10

OWN_LOCK = (
    "If it is the caller's own transaction that locks it (immediate=True inside atomic()), let the broadcast wait for "
    "the commit, which is the default"
)

#: How long SQLite's write lock is left to others after a write: a share of the time that the write took, and at most so
#: many seconds. Else the project's own transactions would hardly ever find it free while broadcasts queue up.
BREAK_SHARE = 0.25
MAX_BREAK = 0.05

#: Error codes of conflicts: the transaction was rolled back, and succeeds when it is repeated.
_SQLITE_CONFLICTS = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_POSTGRES_CONFLICTS = {"40001", "40P01"}

#: Whether the caller of a write may hold the write lock itself, so that a long wait would be in vain.
_brief: ContextVar[bool] = ContextVar("reliable_cable_brief", default=False)


class _WriteQueue:
    """The queue of one process's writers to an SQLite file."""

    def __init__(self) -> None:
        self._lock = FairLock()
        #: The thread whose turn it is.
        self._owner = 0
        self._break_end = 0.0

    @contextmanager
    def turn(self, timeout: float) -> Iterator[None]:
        """Wait up to `timeout` seconds for this thread's turn, and end the turn with the context."""
        thread = threading.get_ident()
        if self._owner == thread:
            # A hook of the transaction that has just been committed: a receiver of Django's signals may have added it.
            yield
            return
        with self._lock.hold(timeout) as held:
            began = max(time.monotonic(), self._break_end)
            time.sleep(max(0.0, began - time.monotonic()))
            try:
                if held:
                    self._owner = thread
                yield
            finally:
                if held:
                    self._owner = 0
                now = time.monotonic()
                self._break_end = now + min(BREAK_SHARE * (now - began), MAX_BREAK)


#: The queues of writers, by process id and database file.
_queues: dict[tuple[int, str], _WriteQueue] = {}


class _CommitUncertain(OperationalError):
    """The connection broke during a commit: whether the transaction was stored is unknown."""


def is_conflict(error: BaseException) -> bool:
    """Say whether a database's error means that a conflict with other transactions rolled everything back."""
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error):
        # The low byte is the primary code, the others tell variants of it apart.
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_CONFLICTS
    code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)  # psycopg, psycopg2
    return code in _POSTGRES_CONFLICTS


class Database:
    """One of Django's databases, as the stores use it.

    Args:
        settings: `database` is its alias; with 0 `handler_threads` nothing leaves the calling thread, nor its
            transaction, so that tests in transactions work.
    """

    def __init__(self, settings: CableSettings) -> None:
        self.alias = settings.database
        self.threads = settings.handler_threads > 0

    def rows(self, model: type[M]) -> QuerySet[M]:
        """Return all rows of a model in this database."""
        return model._default_manager.using(self.alias)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, call: Callable[[], T]) -> T:
        """Call in a short transaction, to which every write of the stores belongs.

        On SQLite the transaction waits in a queue, first come, first served, because SQLite's own waiting is unfair. It
        then begins with the write lock, whatever `transaction_mode` is, because SQLite refuses the lock to a
        transaction that has read before. What a conflict rolled back is repeated for up to `WRITE_PATIENCE` seconds; a
        connection that turns out to be broken before the commit is opened again once.

        Inside a transaction of the caller, the call is just a part of that.

        Raises:
            django.db.Error: nothing was written; unless it happened during the commit.
        """
        connection = connections[self.alias]
        if in_transaction(connection):
            with transaction.atomic(using=self.alias):
                return call()
        if connection.vendor != "sqlite":
            return self._repeat(partial(self._transact, call), WRITE_PATIENCE)
        return self._write_in_turn(partial(self._transact, call), connection)

    def _write_in_turn(self, call: Callable[[], T], connection: Any) -> T:
        """Repeat a call while this thread is at the head of its process's queue."""
        key = (os.getpid(), str(connection.settings_dict["NAME"]))
        patience = float(connection.settings_dict["OPTIONS"].get("timeout", 5.0)) if _brief.get() else WRITE_PATIENCE
        deadline = time.monotonic() + patience
        # If the others took all the time, the call still has one try.
        with _queues.setdefault(key, _WriteQueue()).turn(patience):
            return self._repeat(call, deadline - time.monotonic())

    def _transact(self, call: Callable[[], T]) -> T:
        finished = False
        try:
            with ExitStack() as stack:
                with _with_write_lock(connections[self.alias]):
                    stack.enter_context(transaction.atomic(using=self.alias))
                result = call()
                finished = True
        except (OperationalError, InterfaceError) as error:
            if finished and not is_conflict(error):
                raise _CommitUncertain(str(error)) from error
            raise
        return result

    def store(self, call: Callable[[], T]) -> T:
        """Do as `write` for a broadcast.

        Raises:
            BroadcastError: it was rolled back.
            BroadcastUncertain: the connection broke during the commit.
        """
        with self.broadcast_errors():
            return self.write(call)

    def outside(self, call: Callable[[], T]) -> T:
        """Call outside of the transaction that is open in the calling thread: then in a store thread.

        Raises:
            BroadcastError: the open transaction holds SQLite's only write lock, so the call would wait for its caller.
        """
        connection = connections[self.alias]
        if not (self.threads and in_transaction(connection)):
            return call()
        if connection.vendor != "sqlite":
            return submit_store(call).result()
        if connection.in_atomic_block and getattr(connection, "transaction_mode", None) in ("IMMEDIATE", "EXCLUSIVE"):
            raise BroadcastError(
                f"Nothing was broadcast: the database {self.alias!r} is locked by the caller's own transaction, and "
                f"SQLite has one writer. Leave out immediate=True: the broadcast then waits for the commit."
            )
        return submit_store(partial(_briefly, call)).result()

    def later(self, call: Callable[[], object]) -> None:
        """Call soon, off the caller's path; an error is logged. It may never come to it: the process may end."""

        def attempt() -> None:
            try:
                _briefly(call)
            except Exception:
                logger.warning("The tables of reliable_cable could not be tidied up; it is tried again.", exc_info=True)

        if not self.threads:
            attempt()
            return
        try:
            submit_store(attempt)
        except RuntimeError:
            logger.debug("Too late to tidy up: the interpreter is shutting down.")

    # -- reading ------------------------------------------------------------------------------------------------------

    def read(self, call: Callable[[], T]) -> T:
        """Call, and repeat what failed because of a conflict, for up to `READ_PATIENCE` seconds.

        A connection that turns out to be broken is opened again once. Inside a transaction of the caller, nothing is
        repeated.
        """
        if in_transaction(connections[self.alias]):
            return call()
        return self._repeat(call, READ_PATIENCE)

    # -- errors -------------------------------------------------------------------------------------------------------

    @contextmanager
    def broadcast_errors(self) -> Iterator[None]:
        """Turn the database's errors into `BroadcastError`."""
        try:
            yield
        except _CommitUncertain as error:
            self._recover()
            raise BroadcastUncertain(
                f"Whether the broadcast was stored is unknown: the commit on database {self.alias!r} failed "
                f"({error}). Repeating it with the same idempotency_key is safe."
            ) from error.__cause__
        except Error as error:
            self._recover()
            remedy = f" {OWN_LOCK}; else shorten transactions or raise the timeout." if "locked" in str(error) else ""
            raise BroadcastError(f"Nothing was broadcast: database {self.alias!r}: {error}.{remedy}") from error

    @contextmanager
    def read_errors(self, what: str) -> Iterator[None]:
        """Turn the database's errors into `StoreError`."""
        try:
            yield
        except Error as error:
            self._recover()
            raise StoreError(f"{what}: database {self.alias!r}: {error}.") from error

    def _recover(self) -> None:
        # A broken connection would otherwise stay broken in processes without requests: commands, workers, shells.
        connection = connections[self.alias]
        if not in_transaction(connection):
            connection.close_if_unusable_or_obsolete()

    # -- repeating ----------------------------------------------------------------------------------------------------

    def _repeat(self, call: Callable[[], T], patience: float) -> T:
        """Call again until it meets no conflict; a StoreError counts as what caused it."""
        connection = connections[self.alias]
        deadline = time.monotonic() + patience
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
                _release(error)
            # Random, so that those who met do not meet again.
            time.sleep(random.uniform(0, PAUSE))  # noqa: S311


class _Reader(Protocol):
    _database: Database


R = TypeVar("R", bound=_Reader)


def repeated_read(method: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """Let a store's method run by `Database.read`."""

    @wraps(method)
    def call(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._database.read(partial(method, self, *args, **kwargs))

    return call


def _briefly(call: Callable[[], T]) -> T:
    """Let the writes in a call give up after the database's own timeout."""
    token = _brief.set(True)
    try:
        return call()
    finally:
        _brief.reset(token)


@contextmanager
def _with_write_lock(connection: Any) -> Iterator[None]:
    """Let a transaction that begins in this context take SQLite's write lock, without waiting long for it."""
    if connection.vendor != "sqlite":
        yield
        return
    # Connecting sets the mode.
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


def _release(error: BaseException | None) -> None:
    """Free what an error's tracebacks refer to.

    Django's errors are in reference cycles with their tracebacks. The garbage collector would free the cursors in them
    in any thread, maybe in one that holds the write lock: it would wait there until a statement of this connection has
    waited for that lock.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__


def _was_broken(connection: Any, opened: object) -> bool:
    """Say whether an error was due to a broken connection, which is closed then.

    Args:
        connection: Django's connection.
        opened: the driver's connection before the error. Django may have opened another one already.
    """
    if connection.connection is opened and connection.is_usable():
        return False
    connection.close()
    return True
