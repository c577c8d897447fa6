"""Tells an outage of a database or a store, after which the same call may succeed, from other errors."""

from __future__ import annotations

from django.db import InterfaceError, OperationalError

from .exceptions import BroadcastError, BroadcastUncertain, StoreError


def is_outage(error: BaseException | None) -> bool:
    """Return whether a database or a store was out of reach, and nothing was done because of that."""
    if isinstance(error, BroadcastError):
        return not isinstance(error, BroadcastUncertain) and is_outage(error.__cause__)
    return isinstance(error, OperationalError | InterfaceError | StoreError)
