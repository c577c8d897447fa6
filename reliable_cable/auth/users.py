"""Finds the user that a token names."""

from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError

from reliable_cable.concurrency.threads import BatchedCalls
from reliable_cable.exceptions import InvalidToken
from reliable_cable.identity import root_label
from reliable_cable.logins import is_active


def _find_user(reference: str | int) -> Any:
    model = get_user_model()
    try:
        key = model._meta.pk.to_python(_primary_key(reference))
        user = model._default_manager.filter(pk=key).first()
    except (ValueError, OverflowError, ValidationError):
        user = None
    if user is None or not is_active(user):
        raise InvalidToken("names a user who does not exist or is not active")
    return user


def _primary_key(reference: str | int) -> str | int:
    """Return the primary key in a reference such as `auth.user:1`. Return other references unchanged."""
    if isinstance(reference, int):
        return reference
    if "\0" in reference:
        raise ValueError("PostgreSQL refuses a query with a NUL")
    meta = get_user_model()._meta
    label, separator, key = reference.partition(":")
    return key if separator and label in (root_label(meta), meta.label_lower) else reference


#: Returns the active user whom a token names. Raises `InvalidToken` if there is no such user. The token contains a
#: string such as `auth.user:1`, or a primary key. Many calls at the same time can share one thread.
find_user = BatchedCalls(_find_user)
