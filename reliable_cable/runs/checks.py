"""The system checks of this app (E007, W009). See `reliable_cable.checks` for the table of all ids."""

from collections.abc import Iterator
from typing import Any, Final

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name
from django.urls import URLResolver, get_resolver
from django.utils.module_loading import import_string

from reliable_cable.checks.valid_settings import TAG, valid_settings
from reliable_cable.conf import NAME

from .access import RunPermissions
from .chats import RunChats

#: The `app_name` in urls.py.
_APP_NAME: Final = "reliable_cable_runs"


@register(TAG)
def check_classes(**kwargs: Any) -> list[CheckMessage]:
    """Report that a setting names a class that cannot be used (E007)."""
    settings = valid_settings()
    if settings is None:
        return []
    problems = [_problem("RUN_PERMISSIONS", settings.run_permissions, RunPermissions)]
    if settings.run_chats is not None:
        problems.append(_problem("RUN_CHATS", settings.run_chats, RunChats, "subject", "start"))
    return [Error(f"{NAME}{problem}", id="reliable_cable.E007") for problem in problems if problem is not None]


def _problem(key: str, path: str, base: type, *required: str) -> str | None:
    """Return what is wrong with the class that a setting names; None if it can be used.

    Args:
        key: the name of the setting.
        path: the dotted path of the class.
        base: the class of which it must be a subclass.
        required: the methods that the class must define.
    """
    try:
        found = import_string(path)
    except ImportError as error:
        return f"[{key!r}] cannot be imported: {error}."
    if not isinstance(found, type) or not issubclass(found, base):
        return f"[{key!r}] is {path!r}, which is not a subclass of {base.__module__}.{base.__qualname__}."
    missing = [f"{name}()" for name in required if getattr(found, name) is getattr(base, name)]
    return f"[{key!r}] is {path!r}, which does not define {' and '.join(missing)}." if missing else None


@register(TAG)
def check_urls(**kwargs: Any) -> list[CheckMessage]:
    """Report that the URLs of runs are included without `RUN_CHATS`, or that only `RUN_CHATS` is set (W009)."""
    settings = valid_settings()
    if settings is None or not getattr(django_settings, "ROOT_URLCONF", None):
        return []
    try:
        included = any(resolver.app_name == _APP_NAME for resolver in _resolvers(get_resolver()))
    except Exception:
        return []  # Django's own checks report what is wrong with the URLs
    if included == (settings.run_chats is not None):
        return []
    if included:
        problem = f"The URLs of runs are included, but {NAME}['RUN_CHATS'] is not set. So clients cannot start runs."
        hint = "Set it to a subclass of RunChats. If clients only read and stop runs by their ids, silence this check."
    else:
        problem = f"{NAME}['RUN_CHATS'] is set, but ROOT_URLCONF does not include the URLs of runs."
        hint = (
            "Add path('runs/', include('reliable_cable.runs.urls')). If another URLconf has them, silence this check."
        )
    return [Warning(problem, hint=hint, id="reliable_cable.W009")]


def _resolvers(resolver: URLResolver) -> Iterator[URLResolver]:
    """Yield a resolver, and all resolvers in it."""
    yield resolver
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from _resolvers(pattern)
