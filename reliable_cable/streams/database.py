"""Where the model stores' transactions begin and end, and what the database's errors mean for a broadcast."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction
from django.db.models import Model, QuerySet

from reliable_cable.committing import in_transaction
from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError
from reliable_cable.threads import submit_store

T = TypeVar("T")
M = TypeVar("M", bound=Model)
logger = logging.getLogger("reliable_cable")

OWN_LOCK = (
    "If it is the caller's own transaction that locks it (immediate=True inside atomic()), let the broadcast wait for "
    "the commit, which is the default"
)


class Database:
    """One database of Django's, as the stores use it.

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

    def atomic(self, call: Callable[[], T]) -> T:
        """Call in a transaction."""
        with transaction.atomic(using=self.alias):
            return call()

    def store(self, call: Callable[[], T]) -> T:
        """Call in a transaction that stores a broadcast.

        Raises:
            BroadcastError: it was rolled back.
            BroadcastUncertain: the connection broke during the commit.
        """
        finished = False
        with self.broadcast_errors():
            try:
                with transaction.atomic(using=self.alias):
                    result = call()
                    finished = True
            except (OperationalError, InterfaceError) as error:
                if finished:
                    raise BroadcastUncertain(
                        f"Whether the broadcast was stored is unknown: the commit on database {self.alias!r} failed "
                        f"({error}). Repeating it with the same idempotency_key is safe."
                    ) from error
                raise
        return result

    def outside(self, call: Callable[[], T]) -> T:
        """Call outside of the transaction that is open in the calling thread: then in a store thread.

        Raises:
            BroadcastError: the open transaction holds SQLite's only write lock, so the call would wait for its caller.
        """
        connection = connections[self.alias]
        if not (self.threads and in_transaction(connection)):
            return call()
        if connection.in_atomic_block and getattr(connection, "transaction_mode", None) in ("IMMEDIATE", "EXCLUSIVE"):
            raise BroadcastError(
                f"Nothing was broadcast: the database {self.alias!r} is locked by the caller's own transaction, and "
                f"SQLite has one writer. Leave out immediate=True: the broadcast then waits for the commit."
            )
        return submit_store(call).result()

    def later(self, call: Callable[[], object]) -> None:
        """Call soon, off the caller's path; an error is logged. It may never come to it: the process may end."""

        def attempt() -> None:
            try:
                call()
            except Exception:
                logger.warning("The tables of reliable_cable could not be tidied up; it is tried again.", exc_info=True)

        if not self.threads:
            attempt()
            return
        try:
            submit_store(attempt)
        except RuntimeError:
            logger.debug("Too late to tidy up: the interpreter is shutting down.")

    @contextmanager
    def broadcast_errors(self) -> Iterator[None]:
        """Turn the database's errors into `BroadcastError`."""
        try:
            yield
        except DatabaseError as error:
            self._recover()
            remedy = f" {OWN_LOCK}; else shorten transactions or raise the timeout." if "locked" in str(error) else ""
            raise BroadcastError(f"Nothing was broadcast: database {self.alias!r}: {error}.{remedy}") from error
        except BroadcastUncertain:
            self._recover()
            raise

    @contextmanager
    def read_errors(self, what: str) -> Iterator[None]:
        """Turn the database's errors into `StoreError`."""
        try:
            yield
        except DatabaseError as error:
            self._recover()
            raise StoreError(f"{what}: database {self.alias!r}: {error}.") from error

    def _recover(self) -> None:
        # A broken connection would otherwise stay broken in processes without requests: commands, workers, shells.
        connection = connections[self.alias]
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
