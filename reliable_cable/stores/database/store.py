"""The base class of all stores in Django's database."""

import time
from collections.abc import Callable, Mapping
from copy import copy
from functools import cached_property, partial, wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from reliable_cable.concurrency.threads import run_store, run_store_write
from reliable_cable.conf import CableSettings
from reliable_cable.stores.base import Store

from .database import Database
from .server import DatabaseServer

P = ParamSpec("P")
T = TypeVar("T")


def retried_read(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """Decorate a store's method so that it runs in `Database.read`, which retries it after conflicts."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self._database.read(partial(method, self, *args, **kwargs))
        return result

    return call


class ModelStore(Store):
    """Base class of the stores that keep their data in the database `settings.database`.

    Times come from the server's clock on PostgreSQL, and from this host's clock on SQLite.

    Args:
        settings: the settings; `database` and `handler_threads` are used.
        clock: a clock for tests, which returns seconds since 1970. It replaces the server's or this host's clock.
    """

    uses_database = True
    #: Whether the async methods run in a thread. If False, they block the calling thread (see `blocking`).
    _in_threads = True

    def __init__(self, settings: CableSettings, *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(settings, clock=clock or time.time)
        self._database = Database(settings)
        self._server = DatabaseServer(self._database, clock)

    @property
    def place(self) -> str:
        """Where the data are stored, as a string for error messages."""
        return f"database {self.settings.database!r}"

    @retried_read
    def time(self) -> float:
        """Return the current time by the server's clock on PostgreSQL, and by this host's clock on SQLite."""
        with self._database.store_errors("The time cannot be read"):
            return self._server.time()

    def clocks(self) -> Mapping[str, Callable[[], float]]:
        """On PostgreSQL, return the clock of the database server. On SQLite, return an empty mapping."""
        return {f"database {self.settings.database!r}": self.time} if self._server.has_clock else {}

    @cached_property
    def blocking(self) -> Self:
        """A copy of this store whose async methods block, instead of suspending their caller."""
        store = copy(self)
        store._in_threads = False
        return store

    async def _run(self, call: Callable[[], T]) -> T:
        return await run_store(call) if self._in_threads else call()

    async def _run_write(self, call: Callable[[], T]) -> T:
        return await run_store_write(call) if self._in_threads else call()
