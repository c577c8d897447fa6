"""Checks of the settings, the engine, tokens and `runserver` (E001, E003, E005 to E007, W002, W003, W005, W008)."""

import sys
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands

from reliable_cable.auth.tokens import MIN_SECRET_SIZE, secret_of
from reliable_cable.auth.verification import TokenVerifier
from reliable_cable.conf import HMAC_ALGORITHMS, NAME, CableSettings, get_settings
from reliable_cable.namespaces import find_callable
from reliable_cable.stores.engine import engine_classes, get_engine
from reliable_cable.stores.presence.memory import MemoryPresenceStore
from reliable_cable.stores.streams.memory import MemoryStreamStore

from .valid_settings import TAG, valid_settings

PUBLIC_STREAMS_PROBLEM = (
    f"{NAME}['PUBLIC_STREAMS'] makes all streams public, except those that begin with the name of a channel. Every "
    "client that can connect can read public streams, send whispers to them, and join their presence under any id."
)
PUBLIC_STREAMS_HINT = (
    "List the patterns of the public streams, such as ['news:*']. For other streams, give clients signed names "
    "(`signed_stream_name`)."
)

#: The apps whose `runserver` command is a WSGI server.
WSGI_RUNSERVERS = ("django.core", "django.contrib.staticfiles")


@register(TAG)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Report invalid settings (E001)."""
    try:
        namespace = get_settings().namespace
        if namespace is not None:
            find_callable(namespace)
    except ImproperlyConfigured as error:
        return [Error(str(error), id="reliable_cable.E001")]
    return []


@register(TAG)
def check_engine(**kwargs: Any) -> list[CheckMessage]:
    """Report an engine that cannot be used, or that does not support the durable streams of `STREAMS` (E003)."""
    settings = valid_settings()
    if settings is None:
        return []
    try:
        streams = engine_classes(settings)["streams"]
        get_engine()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="reliable_cable.E003")]
    if streams.supports_durable:
        return []
    return [
        Error(
            f"{NAME}['STREAMS'][{pattern!r}] is durable, but {streams.__module__}.{streams.__qualname__} does not "
            "support durable streams.",
            hint=f"Use the 'database' engine, or remove 'durable' from {NAME}['STREAMS'][{pattern!r}].",
            id="reliable_cable.E003",
        )
        for pattern in settings.streams
        if settings.policy_of(pattern).durable
    ]


@register(TAG)
def check_tokens(**kwargs: Any) -> list[CheckMessage]:
    """Report that tokens cannot be verified (E006), or that the secret that signs them is too short (W008)."""
    settings = valid_settings()
    if settings is None or not settings.reads_tokens:
        return []
    try:
        TokenVerifier(settings)
    except ImproperlyConfigured as error:
        return [Error(str(error), id="reliable_cable.E006")]
    size = len(secret_of(settings).encode())
    if size >= MIN_SECRET_SIZE or not set(settings.jwt_algorithms) & set(HMAC_ALGORITHMS):
        return []
    key = "JWT_SECRET" if settings.jwt_secret else "SECRET"
    return [
        Warning(
            f"{NAME}[{key!r}] has {size} bytes. Anyone who has a token can guess a short secret with a program, and "
            "can then make tokens for every user.",
            hint=f"Set JWT_SECRET to a random text of at least {MIN_SECRET_SIZE} bytes.",
            id="reliable_cable.W008",
        )
    ]


@register(TAG)
def check_runs_app(**kwargs: Any) -> list[CheckMessage]:
    """Report that the app of runs is missing, although a setting needs it (E007)."""
    settings = valid_settings()
    if settings is None or apps.is_installed("reliable_cable.runs"):
        return []
    return [
        Error(
            f"{NAME}[{key!r}] is set, but 'reliable_cable.runs' is not in INSTALLED_APPS.",
            hint="Add 'reliable_cable.runs' to INSTALLED_APPS, and run `migrate`.",
            id="reliable_cable.E007",
        )
        for key in keys_of_runs(settings)
    ]


def keys_of_runs(settings: CableSettings) -> list[str]:
    """Return the names of the given settings that need the app of runs and its URLs."""
    keys = {"RUN_CHATS": settings.run_chats, "RUN_DURABLE_STREAMS": settings.run_durable_streams}
    return [key for key, value in keys.items() if value is not None]


@register(TAG)
def check_runserver(**kwargs: Any) -> list[CheckMessage]:
    """Report a `runserver` command that serves no WebSockets (W002). Without `DEBUG`, nothing is reported."""
    if not django_settings.DEBUG:
        return []
    served_by = get_commands().get("runserver")
    if served_by in WSGI_RUNSERVERS:
        problem = "`runserver` is a WSGI server in this project and serves no WebSockets."
        hint = "Add 'daphne' to INSTALLED_APPS, before 'django.contrib.staticfiles'."
    elif served_by == "daphne" and not getattr(django_settings, "ASGI_APPLICATION", None):
        problem = "`runserver` has no ASGI application to serve."
        hint = "Set ASGI_APPLICATION to the path of the application in your asgi.py."
    else:
        return []
    return [Warning(problem, hint=hint, id="reliable_cable.W002")]


@register(TAG)
def check_public_streams(**kwargs: Any) -> list[CheckMessage]:
    """Report that all streams are public (W003), if `DEBUG` is off. `check --deploy` reports E005 instead."""
    # Django does not tell a check whether deployment checks run too, so the command line is searched.
    if django_settings.DEBUG or "--deploy" in sys.argv or not _all_streams_are_public():
        return []
    return [Warning(PUBLIC_STREAMS_PROBLEM, hint=PUBLIC_STREAMS_HINT, id="reliable_cable.W003")]


@register(TAG, deploy=True)
def check_public_streams_of_deployments(**kwargs: Any) -> list[CheckMessage]:
    """Report that all streams are public (E005)."""
    if not _all_streams_are_public():
        return []
    return [Error(PUBLIC_STREAMS_PROBLEM, hint=PUBLIC_STREAMS_HINT, id="reliable_cable.E005")]


@register(TAG, deploy=True)
def check_stores_in_memory(**kwargs: Any) -> list[CheckMessage]:
    """Report streams or presence that are stored in the memory of one process (W005)."""
    settings = valid_settings()
    if settings is None:
        return []
    try:
        classes = engine_classes(settings)
    except ImproperlyConfigured:
        return []  # `check_engine` reports the error as E003
    if issubclass(classes["streams"], MemoryStreamStore):
        problem = (
            "Streams are in the memory of one process. Its clients do not receive broadcasts from other processes (a "
            "second server process, a task, the shell), and a restart deletes the history of all streams."
        )
        hint = f"Remove {NAME}['ENGINE'], so that streams are in the database, or set {NAME}['REDIS_URL']."
    elif issubclass(classes["presence"], MemoryPresenceStore):
        problem = "Presence is in the memory of each process. Clients do not see members that use another process."
        hint = f"Name the presence store of the database in {NAME}['ENGINE'], or set {NAME}['REDIS_URL']."
    else:
        return []
    return [Warning(problem, hint=hint, id="reliable_cable.W005")]


def _all_streams_are_public() -> bool:
    settings = valid_settings()
    patterns = () if settings is None else settings.public_streams
    return any("*" in pattern and not pattern.strip("*?") for pattern in patterns)
