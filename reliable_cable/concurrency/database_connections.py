"""The database connections of this process's threads: when they are checked, and when they are closed.

Django does this at the beginning and at the end of each request. Handlers and store methods run outside of requests.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from django.db import connections
from django.db.backends.signals import connection_created
from django.dispatch import receiver

T = TypeVar("T")

#: The idle time, in seconds, after which a store thread checks its database connection before it uses it again.
CHECK_AFTER = 1.0
#: How long, in seconds, a store thread may use a database connection beyond its `CONN_MAX_AGE`.
EXTRA_AGE = 60.0
#: How often, in seconds, a thread looks for open connections although it is not in `connected_threads`. Django sends no
#: signal for a connection that was opened but not set up, because the database was just being stopped.
LOOK_INTERVAL = 1.0

#: The threads that have set up a database connection and have not closed it.
connected_threads: set[int] = set()


class _Times(threading.local):
    """Times of the current thread, by the monotonic clock."""

    def __init__(self) -> None:
        #: When the last job of this store thread ended.
        self.used_at = time.monotonic()
        #: When to look for open connections although the thread is not in `connected_threads`.
        self.look_at = self.used_at + LOOK_INTERVAL


_times = _Times()


@receiver(connection_created)
def _remember_connection(**kwargs: Any) -> None:
    connected_threads.add(threading.get_ident())


def close_connections() -> None:
    """Close the database connections of the current thread."""
    connections.close_all()
    connected_threads.discard(threading.get_ident())


def close_old_connections() -> None:
    """Close this thread's database connections that are broken or too old.

    Connections that stay open are checked when they are next used. Connections with an open transaction are never
    closed here. Django's function of the same name closes them, too: it is called only between requests.
    """
    thread, now = threading.get_ident(), time.monotonic()
    # A look for each handler would cost too much, because Django takes some microseconds to list connections.
    if thread not in connected_threads and now < _times.look_at:
        return
    _times.look_at = now + LOOK_INTERVAL
    opened = [each for each in connections.all(initialized_only=True) if each.connection is not None]
    for connection in opened:
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
            _check_when_used(connection)
    if all(connection.connection is None for connection in opened):
        connected_threads.discard(thread)


def _check_when_used(connection: Any) -> None:
    """Make Django check a connection before its next use, because the database may have been restarted."""
    # The option CONN_HEALTH_CHECKS does the same for each request.
    connection.health_check_enabled = True
    connection.health_check_done = False


def with_fresh_connections(call: Callable[..., T], *args: Any) -> T:
    """Run a call. Before and after it, close this thread's database connections that are broken or too old."""
    close_old_connections()
    try:
        return call(*args)
    except Exception:
        _times.look_at = 0.0  # the error may be that a connection could not be set up
        raise
    finally:
        close_old_connections()


def with_kept_connections(call: Callable[..., T], *args: Any) -> T:
    """Run a call, and leave this thread's database connections open afterwards, because more calls usually follow.

    Before the call, a connection is closed if its age exceeds `CONN_MAX_AGE` by more than `EXTRA_AGE` seconds. After an
    error, or after `CHECK_AFTER` idle seconds, a connection is checked before its next use.
    """
    now = time.monotonic()
    idle = now - _times.used_at > CHECK_AFTER
    for connection in connections.all(initialized_only=True):
        if connection.close_at is not None and now > connection.close_at + EXTRA_AGE:
            connection.close()
        elif idle or connection.errors_occurred:
            connection.errors_occurred = False
            _check_when_used(connection)
    try:
        return call(*args)
    finally:
        _times.used_at = time.monotonic()
