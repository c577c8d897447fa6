"""Whose connection one is: identifiers by name, as text that is the same in every process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

from django.db.models import Model

#: What identifies a connection (`{"user": "auth.user:1"}`), or some of it: a condition. The text of nobody is empty.
Identity = Mapping[str, str]

#: Every name in `identified_by` of the consumer classes that were defined in this process.
identifier_names: set[str] = {"user"}


def identify(value: Any) -> str:
    """Name a connection identifier's value; None and anonymous users are `""`."""
    if value is None or getattr(value, "is_anonymous", False) is True:
        return ""
    if isinstance(value, Model) or (hasattr(value, "_meta") and hasattr(value, "pk")):
        return f"{value._meta.label_lower}:{value.pk}"
    return f"{type(value).__name__}:{value}"


def identity_of(owner: object, names: Iterable[str]) -> dict[str, str]:
    """Return the identity that the attributes `names` of a consumer give."""
    return {name: identify(getattr(owner, name, None)) for name in names}


def matches(condition: Identity, identity: Identity) -> bool:
    """Whether a connection has all the identifiers of a condition."""
    return all(identity.get(name) == text for name, text in condition.items())


def canonical(identity: Identity) -> str:
    """Return an identity as text: equal ones are the same."""
    return json.dumps(dict(identity), sort_keys=True)


def condition_key(condition: Identity) -> str:
    """Return a short name of a condition, which tells nothing about it."""
    return hashlib.blake2b(canonical(condition).encode(), digest_size=16).hexdigest()


def condition_keys(identity: Identity) -> list[str]:
    """Return the names of all conditions that an identity matches; nobody's identifiers are in none."""
    pairs = [(name, text) for name, text in sorted(identity.items()) if text]
    return [condition_key(dict(some)) for size in range(1, len(pairs) + 1) for some in combinations(pairs, size)]
