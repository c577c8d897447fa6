"""Distinguishes outages of a database or store from other errors. After an outage, the same call may succeed."""

from __future__ import annotations

from django.db import InterfaceError, OperationalError

from .exceptions import BroadcastError, BroadcastUncertain, StoreError


def is_outage(error: BaseException | None) -> bool:
    """Return whether an error means that a database or store could not be reached, so that nothing was done."""
    if isinstance(error, BroadcastError):
        return not isinstance(error, BroadcastUncertain) and is_outage(error.__cause__)
    return isinstance(error, OperationalError | InterfaceError | StoreError)
