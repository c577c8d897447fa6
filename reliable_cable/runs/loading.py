"""Imports the classes that the settings of runs name."""

from typing import TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from reliable_cable.conf import NAME

T = TypeVar("T")


def load_class(key: str, path: str, base: type[T]) -> type[T]:
    """Return the class that a setting names.

    Args:
        key: the name of the setting.
        path: the dotted path of the class, which is the value of the setting.
        base: the class of which it must be a subclass.

    Raises:
        ImproperlyConfigured: the path cannot be imported, or names no subclass of `base`.
    """
    try:
        found = import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(f"{NAME}[{key!r}] cannot be imported: {error}.") from error
    if not isinstance(found, type) or not issubclass(found, base):
        raise ImproperlyConfigured(
            f"{NAME}[{key!r}] is {path!r}, which is not a subclass of {base.__module__}.{base.__qualname__}."
        )
    return found
