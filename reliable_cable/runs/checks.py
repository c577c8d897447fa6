"""The system checks of this app (E007, E010, W009, W010). See `reliable_cable.checks` for the table of all ids."""

from collections.abc import Iterator
from typing import Any, Final

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name
from django.core.exceptions import ImproperlyConfigured
from django.urls import URLResolver, get_resolver

from reliable_cable.checks.settings import keys_of_runs
from reliable_cable.checks.valid_settings import TAG, valid_settings
from reliable_cable.conf import NAME

from .access import RunPermissions
from .chats import RunChats
from .durable.access import DurableStreams
from .durable.storage import has_durable_store
from .events import DURABLE_PREFIX, STREAM_PREFIX
from .loading import load_class

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
    if settings.run_durable_streams is not None:
        problems.append(_problem("RUN_DURABLE_STREAMS", settings.run_durable_streams, DurableStreams, "may_create"))
    return [Error(problem, id="reliable_cable.E007") for problem in problems if problem is not None]


def _problem(key: str, path: str, base: type, *required: str) -> str | None:
    """Return the problem with the class that a setting names; None if the class can be used.

    Args:
        key: the name of the setting.
        path: the dotted path of the class.
        base: the class of which it must be a subclass.
        required: the methods that the class must define.
    """
    try:
        found: type = load_class(key, path, base)
    except ImproperlyConfigured as error:
        return str(error)
    missing = [f"{name}()" for name in required if getattr(found, name) is getattr(base, name)]
    return f"{NAME}[{key!r}] is {path!r}, which does not define {' and '.join(missing)}." if missing else None


@register(TAG)
def check_urls(**kwargs: Any) -> list[CheckMessage]:
    """Report URLs of runs without a setting that needs them, or such a setting without the URLs (W009)."""
    settings = valid_settings()
    if settings is None or not getattr(django_settings, "ROOT_URLCONF", None):
        return []
    try:
        included = any(resolver.app_name == _APP_NAME for resolver in _resolvers(get_resolver()))
    except Exception:
        return []  # Django's own checks report what is wrong with the URLs
    used = keys_of_runs(settings)
    if included == bool(used):
        return []
    if included:
        problem = f"The URLs of runs are included, but {NAME}['RUN_CHATS'] is not set. So clients cannot start runs."
        hint = "Set it to a subclass of RunChats. If clients only read and stop runs by their ids, silence this check."
    else:
        problem = f"{NAME}[{used[0]!r}] is set, but ROOT_URLCONF does not include the URLs of runs."
        hint = (
            "Add path('runs/', include('reliable_cable.runs.urls')). If another URLconf has them, silence this check."
        )
    return [Warning(problem, hint=hint, id="reliable_cable.W009")]


@register(TAG)
def check_durable_streams(**kwargs: Any) -> list[CheckMessage]:
    """Report that `RUN_DURABLE_STREAMS` is set, but the data of the streams would not be durable (W010)."""
    settings = valid_settings()
    if settings is None or settings.run_durable_streams is None:
        return []
    try:
        if has_durable_store(DURABLE_PREFIX):
            return []
    except ImproperlyConfigured:
        return []  # E003 reports what is wrong with the engine
    problem = f"{NAME}['RUN_DURABLE_STREAMS'] is set, but streams of clients cannot be stored, and get the status 501."
    hint = (
        f"Add 'durable:*': {{'durable': True}} to {NAME}['STREAMS'], and use the database of 'reliable_cable.runs' as "
        f"{NAME}['DATABASE'], with an engine that stores streams in the database."
    )
    return [Warning(problem, hint=hint, id="reliable_cable.W010")]


@register(TAG)
def check_history(**kwargs: Any) -> list[CheckMessage]:
    """Report that the streams of runs keep no history, so that runs cannot be written (E010)."""
    settings = valid_settings()
    if settings is None or settings.policy(STREAM_PREFIX).history_size:
        return []
    problem = f"The settings of {NAME} keep no history for the streams of runs, so runs cannot be written."
    hint = f"Add 'run:*': {{'history_size': 100}} to {NAME}['STREAMS']."
    return [Error(problem, hint=hint, id="reliable_cable.E010")]


def _resolvers(resolver: URLResolver) -> Iterator[URLResolver]:
    """Yield a resolver, and all resolvers in it."""
    yield resolver
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from _resolvers(pattern)
