"""Identities of connections: the values of `identified_by`, as texts that are the same in every process."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any, Final
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet

#: The identifiers of a connection by name, such as `{"user": "auth.user:1"}`. The text of an anonymous user is empty.
#: A condition has the same form. It matches every connection that has all of its identifiers.
Identity = Mapping[str, str]

#: Every name in `identified_by` of the consumer classes that were defined in this process.
identifier_names: set[str] = {"user"}

# No identifier can have one of the following names.

#: The key of a condition that selects subscriptions by their channel.
CHANNEL: Final = "@channel"
#: The key of a condition that selects subscriptions by one of their streams.
STREAM: Final = "@stream"
#: The key of the namespace in an identity or a condition.
_NAMESPACE: Final = "@namespace"

#: The types of primary keys. A user is identified by the user object, so that no connection has such an identifier.
_PRIMARY_KEYS: Final = (int, UUID)
_PRIMARY_KEY_NAMES: Final = frozenset(each.__name__ for each in _PRIMARY_KEYS)
#: The collections that are passed by mistake, to name several users at once.
_COLLECTIONS: Final = (list, tuple, set, frozenset, dict)


def row_name(instance: Any) -> str:
    """Return the name of a saved model instance: `auth.user:1`. The instances of a proxy model have the same name."""
    return f"{instance._meta.concrete_model._meta.label_lower}:{instance.pk}"


def root_label(meta: Any) -> str:
    """Return the label of the model whose table all parents and children of a model share the primary keys of."""
    meta = meta.concrete_model._meta
    while (link := meta.pk.remote_field) is not None and link.parent_link:
        meta = link.model._meta.concrete_model._meta
    return str(meta.label_lower)


def is_row(value: Any) -> bool:
    """Return whether a value is an instance of a model, perhaps a lazy one such as `request.user`."""
    # Some classes answer every attribute that they do not know with None, such as simplejwt's `TokenUser`.
    return isinstance(value, Model) or (getattr(value, "_meta", None) is not None and hasattr(value, "pk"))


def identify(value: Any) -> str:
    """Return the text of an identifier's value. It is `""` for None and for anonymous users.

    With multi-table inheritance, a child has the text of its parent, because both are the same user.
    """
    if value is None or getattr(value, "is_anonymous", False) is True:
        return ""
    if is_row(value):
        return f"{root_label(value._meta)}:{value.pk}"
    return f"{type(value).__name__}:{value}"


def reason_against(name: str, value: Any) -> str:
    """Return why no connection can have this value as an identifier, or `""` if one can.

    Args:
        name: the name of the identifier.
        value: its value.
    """
    if isinstance(value, type | QuerySet | Iterator) or type(value) in _COLLECTIONS:
        return "a class, a queryset or a collection is not one value"
    if inspect.isroutine(value) or inspect.isawaitable(value):
        return "a function or an awaitable is not a value; call it or await it"
    if value == "" or not identify(value) or getattr(value, "pk", value) is None:
        return "the value identifies nobody, or is not saved"
    if name == "user" and isinstance(value, _PRIMARY_KEYS):
        return "a primary key matches no connection; give the user object"
    if str(value) == object.__repr__(value):
        return f"the type {type(value).__name__} has no text of its own; define its `__str__`"
    return ""


def parse_identifier(name: str, text: object) -> str:
    """Return the text of an identifier in the form that `identify` returns.

    The label of a proxy model or of a child becomes that of the model or parent, and a primary key gets its usual form.

    Args:
        name: the name of the identifier.
        text: the text, from outside: `auth.user:1` for a row, `<type>:<value>` for another value.

    Raises:
        ValueError: no connection can have this identifier. The message says why.
    """
    if not isinstance(text, str) or not text.partition(":")[2]:
        raise ValueError('is neither "<app>.<model>:<primary key>" nor "<type>:<value>"')
    kind, _, value = text.partition(":")
    if name == "user" and kind in _PRIMARY_KEY_NAMES:
        raise ValueError('is a primary key, which matches no connection; give "<app>.<model>:<primary key>"')
    if "." not in kind:
        return text
    try:
        model = apps.get_model(kind)
        key = model._meta.pk.to_python(value)
    except (LookupError, ValueError):
        raise ValueError(f"has the label {kind!r:.80}, and there is no such model") from None
    except ValidationError as error:
        raise ValueError(f"has a primary key that {kind} cannot have: {' '.join(error.messages)}") from None
    return identify(model(pk=key))


def identity_of(owner: object, names: Iterable[str]) -> dict[str, str]:
    """Return the identity of a consumer.

    Args:
        owner: the consumer.
        names: its attributes that identify the connection.
    """
    return {name: identify(getattr(owner, name, None)) for name in names}


def in_namespace(identity: Identity, namespace: str) -> dict[str, str]:
    """Return a copy of an identity or a condition, with a namespace unless that is `""`."""
    return {**identity, _NAMESPACE: namespace} if namespace else dict(identity)


def subscription_scopes(channel: str, streams: Iterable[str]) -> list[Identity]:
    """Return the conditions that select a subscription: one for its channel, and one for each of its streams.

    Args:
        channel: the name of the channel.
        streams: the names of the streams, with their namespace.
    """
    return [{CHANNEL: channel}, *({STREAM: stream} for stream in streams)]


def matches(condition: Identity, identity: Identity) -> bool:
    """Return whether an identity has all the identifiers of a condition, and the same namespace."""
    return condition.get(_NAMESPACE) == identity.get(_NAMESPACE) and all(
        identity.get(name) == text for name, text in condition.items()
    )


def canonical(identity: Identity) -> str:
    """Return an identity as text. Equal identities have equal texts."""
    return json.dumps(dict(identity), sort_keys=True)


def condition_key(condition: Identity) -> str:
    """Return a short key for a condition. It is a hash, so it does not show the identifiers."""
    return hashlib.blake2b(canonical(condition).encode(), digest_size=16).hexdigest()


def condition_keys(identity: Identity) -> list[str]:
    """Return the keys of all conditions that an identity matches. Empty identifiers match no condition."""
    namespace = identity.get(_NAMESPACE, "")
    pairs = [(name, text) for name, text in sorted(identity.items()) if text and name != _NAMESPACE]
    return [
        condition_key(in_namespace(dict(some), namespace))
        for size in range(1, len(pairs) + 1)
        for some in combinations(pairs, size)
    ]
