"""Identities of connections: the values of `identified_by`, as texts that are the same in every process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, Final

from django.db.models import Model

#: The identifiers of a connection by name, such as `{"user": "auth.user:1"}`. The text of an anonymous user is empty.
#: An identity with only some of the names is a condition, which connections can match.
Identity = Mapping[str, str]

#: Every name in `identified_by` of the consumer classes that were defined in this process.
identifier_names: set[str] = {"user"}

#: The entry of a condition that names the channel of subscriptions. No identifier can have this name.
CHANNEL: Final = "@channel"
#: The entry of a condition that names a stream of subscriptions.
STREAM: Final = "@stream"


def identify(value: Any) -> str:
    """Return the text of an identifier's value. It is `""` for None and for anonymous users."""
    if value is None or getattr(value, "is_anonymous", False) is True:
        return ""
    if isinstance(value, Model) or (hasattr(value, "_meta") and hasattr(value, "pk")):
        return f"{value._meta.label_lower}:{value.pk}"
    return f"{type(value).__name__}:{value}"


def identity_of(owner: object, names: Iterable[str]) -> dict[str, str]:
    """Return the identity of a consumer.

    Args:
        owner: the consumer.
        names: its attributes that identify the connection.
    """
    return {name: identify(getattr(owner, name, None)) for name in names}


def subscription_scopes(channel: str, streams: Iterable[str]) -> list[Identity]:
    """Return what a condition can name of a subscription: its channel, or one of its streams.

    Args:
        channel: the name of the channel.
        streams: the names of the streams.
    """
    return [{CHANNEL: channel}, *({STREAM: stream} for stream in streams)]


def matches(condition: Identity, identity: Identity) -> bool:
    """Return whether an identity has all the identifiers of a condition."""
    return all(identity.get(name) == text for name, text in condition.items())


def canonical(identity: Identity) -> str:
    """Return an identity as text. Equal identities have equal texts."""
    return json.dumps(dict(identity), sort_keys=True)


def condition_key(condition: Identity) -> str:
    """Return a short key for a condition. It is a hash, so it does not show the identifiers."""
    return hashlib.blake2b(canonical(condition).encode(), digest_size=16).hexdigest()


def condition_keys(identity: Identity) -> list[str]:
    """Return the keys of all conditions that an identity matches. Empty identifiers match no condition."""
    pairs = [(name, text) for name, text in sorted(identity.items()) if text]
    return [condition_key(dict(some)) for size in range(1, len(pairs) + 1) for some in combinations(pairs, size)]
