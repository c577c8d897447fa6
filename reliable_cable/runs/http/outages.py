"""Refuses requests while the database or the stream store is unavailable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from django.http import HttpRequest

from reliable_cable.concurrency.outages import is_outage
from reliable_cable.exceptions import BroadcastError, BroadcastUncertain, StoreError
from reliable_cable.http.core import GET, Refusal
from reliable_cable.logs import logger

#: How long, in seconds, a client should wait before it repeats a request that an outage has refused.
RETRY_SOON: Final = 1


class Outage(Refusal):
    """Raised to refuse a request, because the database or the stream store has failed. The error is already logged.

    Args:
        message: tells the client what has failed, and whether the request may have had an effect.
    """

    def __init__(self, message: str) -> None:
        super().__init__(HTTPStatus.SERVICE_UNAVAILABLE, message, retry_after=RETRY_SOON)


def is_temporary(error: Exception) -> bool:
    """Return whether an error means that the database or the store has failed, so that the same call may succeed later.

    Wrong arguments, wrong SQL and bugs are not temporary.
    """
    if isinstance(error, BroadcastError):
        return not isinstance(error, ValueError)
    return is_outage(error)


def log_outage(method: str, path: str, outcome: str, error: Exception) -> None:
    """Log an error of the database or the store, without a traceback, and without the values in SQL statements.

    Args:
        method: the method of the request.
        path: the path of the request.
        outcome: what happened to the request, such as "was refused".
        error: the error.
    """
    # The later lines of a database's error message may quote the statement.
    reason = str(error).partition("\n")[0]
    logger.error("%s %s %s, because the %s failed: %s", method, path, outcome, _failed(error), reason)


@contextmanager
def refuse_outages(request: HttpRequest) -> Iterator[None]:
    """Refuse a request if the database or the store fails in this context.

    Raises:
        Outage: the database or the store has failed.
    """
    try:
        yield
    except Exception as error:
        if not is_temporary(error):
            raise
        log_outage(str(request.method), request.path, "was refused", error)
        raise Outage(_message(request, error)) from error


def _message(request: HttpRequest, error: Exception) -> str:
    failed = f"The {_failed(error)} failed."
    if isinstance(error, BroadcastUncertain):
        return f"{failed} It is unknown whether the data were stored."
    if isinstance(error, BroadcastError | StoreError) or request.method in GET:
        return f"{failed} Try again."
    return f"{failed} Try again. It is unknown whether this request had an effect."


def _failed(error: Exception) -> str:
    return "store" if isinstance(error, BroadcastError | StoreError) else "database"
