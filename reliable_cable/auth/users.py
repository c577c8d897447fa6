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
    """Return the primary key in `auth.user:1`, or the whole reference if it has no label of the user model."""
    if isinstance(reference, int):
        return reference
    if "\0" in reference:
        raise ValueError("PostgreSQL refuses a query with a NUL")
    meta = get_user_model()._meta
    label, separator, key = reference.partition(":")
    return key if separator and label in (root_label(meta), meta.label_lower) else reference


#: Returns the active user that a token names by the text of a row (`auth.user:1`) or by a primary key. Users of clients
#: that connect at the same time are looked up in one thread hop. `InvalidToken` is raised if there is no such user.
find_user = BatchedCalls(_find_user)
