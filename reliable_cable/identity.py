"""Converts the identifiers of connections to strings that are the same in every process."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import combinations
from typing import Any, Final
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db.models import Model, QuerySet

#: The identifiers of a connection as strings, by their names. The string for an anonymous user is empty. An example is
#: `{"user": "auth.user:1"}`. A condition has the same form. It matches a connection that has all identifiers of the
#: condition.
Identity = Mapping[str, str]

#: The names in `identified_by` of all consumer classes in this process.
identifier_names: set[str] = {"user"}

# No identifier can have one of the following keys as its name, because the names of attributes contain no `@`.

#: The key of a condition that selects subscriptions by their channel.
CHANNEL: Final = "@channel"
#: The key of a condition that selects subscriptions by one of their streams.
STREAM: Final = "@stream"
#: The key of the namespace in an identity or a condition.
_NAMESPACE: Final = "@namespace"

#: The types of primary keys. They are refused as values of `user`, because a user is identified by the user object.
_PRIMARY_KEYS: Final = (int, UUID)
_PRIMARY_KEY_NAMES: Final = frozenset(each.__name__ for each in _PRIMARY_KEYS)
#: The types of collections. A caller may pass one by mistake, to name several users at once.
_COLLECTIONS: Final = (list, tuple, set, frozenset, dict)


def row_name(instance: Any) -> str:
    """Return the name of a saved model instance, such as `auth.user:1`. A proxy model has its concrete model's name."""
    return f"{instance._meta.concrete_model._meta.label_lower}:{instance.pk}"


def root_label(meta: Any) -> str:
    """Return the label, such as `auth.user`, of a model's topmost parent in multi-table inheritance.

    The rows of a parent and of its child that represent the same object have the same primary key.
    """
    meta = meta.concrete_model._meta
    while (link := meta.pk.remote_field) is not None and link.parent_link:
        meta = link.model._meta.concrete_model._meta
    return str(meta.label_lower)


def is_row(value: Any) -> bool:
    """Return whether a value is a model instance. A lazy object such as `request.user` counts, too."""
    # `hasattr` does not suffice for `_meta`: `TokenUser` of simplejwt returns None for all unknown attributes.
    return isinstance(value, Model) or (getattr(value, "_meta", None) is not None and hasattr(value, "pk"))


def identify(value: Any) -> str:
    """Return the string for the value of an identifier. It is `""` for None and for anonymous users.

    With multi-table inheritance, a child has the same string as its parent, because both represent the same object.
    """
    if value is None or getattr(value, "is_anonymous", False) is True:
        return ""
    if is_row(value):
        return f"{root_label(value._meta)}:{value.pk}"
    return f"{type(value).__name__}:{value}"


def reason_against(name: str, value: Any) -> str:
    """Return the reason why no connection can have an identifier with this value; `""` if a connection can have it.

    Args:
        name: the name of the identifier.
        value: the value of the identifier.
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
        return f"the type {type(value).__name__} does not define `__str__`"
    return ""


def parse_identifier(name: str, text: object) -> str:
    """Convert an identifier in an HTTP request to the form that `identify` returns.

    The label of a proxy model is replaced by that of the concrete model, and the label of a child by that of its
    parent. Primary keys are normalized.

    Args:
        name: the name of the identifier.
        text: a string from the request: `auth.user:1` for a model instance, `<type>:<value>` for another value.

    Raises:
        ValueError: no connection can have this identifier. The message contains the reason.
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
    """Return the identity of a connection.

    Args:
        owner: the consumer of the connection.
        names: the names of the attributes that identify the connection.
    """
    return {name: identify(getattr(owner, name, None)) for name in names}


def in_namespace(identity: Identity, namespace: str) -> dict[str, str]:
    """Return a copy of an identity or condition with a namespace. The namespace `""` is not added."""
    return {**identity, _NAMESPACE: namespace} if namespace else dict(identity)


def namespace_in(identity: Mapping[str, Any]) -> str:
    """Return the namespace that `in_namespace` has added to an identity; `""` if there is none."""
    return str(identity.get(_NAMESPACE) or "")


def subscription_scopes(channel: str, streams: Iterable[str]) -> list[Identity]:
    """Return the conditions that match a subscription. There is one for the channel, and one for each stream.

    Args:
        channel: the name of the channel.
        streams: the names of the subscription's streams, with their namespace.
    """
    return [{CHANNEL: channel}, *({STREAM: stream} for stream in streams)]


def matches(condition: Identity, identity: Identity) -> bool:
    """Return whether an identity has all identifiers and the namespace of a condition."""
    return condition.get(_NAMESPACE) == identity.get(_NAMESPACE) and all(
        identity.get(name) == text for name, text in condition.items()
    )


def canonical(identity: Identity) -> str:
    """Convert an identity to JSON text. The texts of equal identities are equal."""
    return json.dumps(dict(identity), sort_keys=True)


def identifiers_text(identity: Identity) -> str:
    """Return the text by which anycable-go knows a connection: the identifiers as in a token (`cable_token`).

    Strings, whole numbers and booleans become JSON values. For other values, the text contains the results of
    `identify`, or null for `""`. The names are sorted, so that the texts of equal identities are equal.
    """
    values = {name: _value_in_text(text) for name, text in identity.items()}
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


def _value_in_text(text: str) -> str | int | None:
    kind, _, value = text.partition(":")
    match kind:
        case "str":
            return value
        case "int":
            return int(value)
        case "bool":
            return value == "True"
    return text or None


def condition_key(condition: Identity) -> str:
    """Return the key under which a condition is stored. It is a hash, which does not reveal the identifiers."""
    return _key(tuple(sorted(condition.items())))


@lru_cache(maxsize=4096)
def _key(items: tuple[tuple[str, str], ...]) -> str:
    return hashlib.blake2b(canonical(dict(items)).encode(), digest_size=16).hexdigest()


def condition_keys(identity: Identity) -> list[str]:
    """Return the keys (see `condition_key`) of all conditions that match an identity. Empty identifiers are omitted."""
    namespace = identity.get(_NAMESPACE, "")
    pairs = [(name, text) for name, text in sorted(identity.items()) if text and name != _NAMESPACE]
    return [
        condition_key(in_namespace(dict(some), namespace))
        for size in range(1, len(pairs) + 1)
        for some in combinations(pairs, size)
    ]
