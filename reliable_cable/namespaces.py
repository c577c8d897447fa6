"""Namespaces, which separate the streams, members, sessions and connections of tenants (see the setting `NAMESPACE`).

Applications use stream names without a namespace. The stores, the hub and the connections use names with a namespace.
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

#: The key under which an ASGI scope may contain the namespace. The HTTP endpoints of runs add this key after they have
#: found the namespace of a request.
SCOPE_KEY: Final = "reliable_cable.namespace"

#: The namespace of the connection whose handler is running.
_of_connection: ContextVar[str] = ContextVar("reliable_cable_namespace", default="")


def qualify(namespace: str, name: str) -> str:
    """Return the name of a stream with its namespace. The namespace `""` does not change the name."""
    return f"{namespace}{NAMESPACE_SEPARATOR}{name}" if namespace else name


def split_namespace(name: str) -> tuple[str, str]:
    """Return the namespace of a stream, and the name without it. The namespace is `""` if the name has none."""
    namespace, _, bare = name.rpartition(NAMESPACE_SEPARATOR)
    return namespace, bare


def namespace_of(connection: object) -> str:
    """Return the namespace of a connection; `""` if it has none."""
    return getattr(connection, "namespace", "")


def current_namespace() -> str:
    """Return the namespace of the running code; `""` if it has none.

    The function that `NAMESPACE` names is called without arguments. If it returns `""` in a handler, the namespace is
    that of the connection.

    Raises:
        BroadcastError: in a handler, the function has returned a namespace that is not the one of the connection.
        ImproperlyConfigured: the function cannot be imported, or has returned a value that cannot be a namespace.
    """
    path = get_settings().namespace
    if path is None:
        return ""
    namespace, own = _checked(find_callable(path)()), _of_connection.get()
    if own and namespace not in ("", own):
        raise BroadcastError(
            f"{NAME}['NAMESPACE'] returned {namespace!r} in a handler of a connection with the namespace {own!r}. "
            "Nothing was sent."
        )
    return namespace or own


def find_namespace(scope: dict[str, Any]) -> str:
    """Return the namespace of a new connection or of a request to `CableHTTP`; `""` if it has none.

    Args:
        scope: the ASGI scope. It is the argument of the function that `NAMESPACE` names.

    Raises:
        ImproperlyConfigured: as for `current_namespace`.
    """
    path = get_settings().namespace
    if path is None:
        return ""
    known: str | None = scope.get(SCOPE_KEY)
    return _checked(find_callable(path)(scope)) if known is None else known


def enter_namespace(scope: dict[str, Any]) -> str:
    """Find the namespace of a new connection, set it in the current context, and return it."""
    namespace = find_namespace(scope)
    if namespace != _of_connection.get():  # each value in the context takes memory until the connection ends
        _of_connection.set(namespace)
    return namespace


@contextmanager
def use_namespace(namespace: str) -> Iterator[None]:
    """Set a namespace in the current context, as if a handler of a connection with this namespace were running."""
    token = _of_connection.set(namespace)
    try:
        yield
    finally:
        _of_connection.reset(token)


@lru_cache
def find_callable(path: str) -> Callable[..., object]:
    """Import the callable that `NAMESPACE` names.

    Raises:
        ImproperlyConfigured: there is no such callable.
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
