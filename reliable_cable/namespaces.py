"""Namespaces: each tenant has streams, members, sessions and connections of its own (the setting `NAMESPACE`).

Applications use stream names without a namespace. The stores, the hub and the connections use names with one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .conf import NAME, NAMESPACE_SEPARATOR, get_settings
from .exceptions import BroadcastError

#: The maximum number of characters of a namespace.
MAX_LENGTH: Final = 100

#: The namespace of the connection whose handler is running.
_of_connection: ContextVar[str] = ContextVar("reliable_cable_namespace", default="")


def qualify(namespace: str, name: str) -> str:
    """Return the name of a stream with its namespace. Without a namespace, the name stays as it is."""
    return f"{namespace}{NAMESPACE_SEPARATOR}{name}" if namespace else name


def split_namespace(name: str) -> tuple[str, str]:
    """Return the namespace of a stream, or `""`, and the name without it."""
    namespace, _, bare = name.rpartition(NAMESPACE_SEPARATOR)
    return namespace, bare


def namespace_of(connection: object) -> str:
    """Return the namespace of the connection of a channel, or `""` if it has none."""
    return getattr(connection, "namespace", "")


def current_namespace() -> str:
    """Return the namespace of the running code, or `""` if it has none.

    `NAMESPACE` is called without arguments. If it returns `""` in a handler, the namespace is that of the connection.

    Raises:
        BroadcastError: a handler runs in a namespace other than that of its connection.
        ImproperlyConfigured: `NAMESPACE` cannot be imported, or it returned a value that cannot be a namespace.
    """
    path = get_settings().namespace
    if path is None:
        return ""
    namespace, own = _checked(find_callable(path)()), _of_connection.get()
    if own and namespace not in ("", own):
        raise BroadcastError(
            f"{NAME}['NAMESPACE'] is {namespace!r} in a handler of a connection of {own!r}. Nothing was sent."
        )
    return namespace or own


def find_namespace(scope: dict[str, Any]) -> str:
    """Return the namespace of a new connection, or of an HTTP request that `CableHTTP` serves; `""` if it has none.

    Raises:
        ImproperlyConfigured: as for `current_namespace`.
    """
    path = get_settings().namespace
    return "" if path is None else _checked(find_callable(path)(scope))


def enter_namespace(scope: dict[str, Any]) -> str:
    """Find out the namespace of a new connection, use it in the current context, and return it."""
    namespace = find_namespace(scope)
    if namespace != _of_connection.get():  # a value in the context takes memory for as long as the connection lives
        _of_connection.set(namespace)
    return namespace


@contextmanager
def use_namespace(namespace: str) -> Iterator[None]:
    """Use a namespace in the current context, as in a handler of a connection of that namespace."""
    token = _of_connection.set(namespace)
    try:
        yield
    finally:
        _of_connection.reset(token)


@lru_cache
def find_callable(path: str) -> Callable[..., object]:
    """Return the callable that `NAMESPACE` names.

    Raises:
        ImproperlyConfigured: it cannot be imported, or cannot be called.
    """
    try:
        found = import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(f"{NAME}['NAMESPACE'] cannot be imported: {error}.") from error
    if not callable(found):
        raise ImproperlyConfigured(f"{NAME}['NAMESPACE'] is {path!r}, which cannot be called.")
    named: Callable[..., object] = found
    return named


def _checked(namespace: object) -> str:
    if not isinstance(namespace, str) or not namespace.isprintable() or len(namespace) > MAX_LENGTH:
        raise ImproperlyConfigured(
            f"{NAME}['NAMESPACE'] returned {namespace!r:.200}; it must return a string of up to {MAX_LENGTH} printable "
            "characters."
        )
    return namespace
