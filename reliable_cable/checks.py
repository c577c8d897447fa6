"""System checks, with stable ids; silence one by `SILENCED_SYSTEM_CHECKS`.

| id | says |
|---|---|
| `reliable_cable.E001` | `RELIABLE_CABLE` is invalid: an unknown key, a wrong type, an impossible value |
| `reliable_cable.E002` | several channel classes have one name |
| `reliable_cable.E003` | the engine is not there, or cannot do what the settings ask |
| `reliable_cable.E004` | the database that `DATABASE` names cannot keep the streams and sessions |
| `reliable_cable.W001` | advice for SQLite with several writers: IMMEDIATE transactions, and WAL |
| `reliable_cable.W002` | `runserver` serves no WebSockets |
| `reliable_cable.W003` | streams are public, in production |
| `reliable_cable.W004` | a channel layer of channels-redis cannot be idle, with redis-py 8 |

An invalid setting hides the checks that need the settings. W001 on WAL needs a connection, so it runs where Django
checks databases: `migrate` and `check --database default`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004 - Django's name
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands
from django.db import connections, router
from django.utils.module_loading import import_string

from .conf import NAME, CableSettings, get_settings
from .stores.engine import engine_classes, get_engine

TAG = "reliable_cable"

SQLITE_HINT = (
    "Set 'OPTIONS': {'transaction_mode': 'IMMEDIATE', 'init_command': 'PRAGMA journal_mode=WAL;'} in "
    "DATABASES[%(alias)r]: transactions then wait for each other when they begin, and readers do not wait at all. "
    "Broadcasts outside of transactions do not need this."
)

#: Which apps' `runserver` is known to serve WSGI only.
WSGI_RUNSERVERS = ("django.core", "django.contrib.staticfiles")


@register(TAG)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """E001."""
    try:
        get_settings()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="reliable_cable.E001")]
    return []


@register(TAG)
def check_channel_names(**kwargs: Any) -> list[CheckMessage]:
    """E002."""
    # Channels need the settings; so this module is imported late, when E001 had its say.
    from .channel import duplicate_channels

    return [
        Error(
            f"{len(paths)} channels have the name {name!r}: {', '.join(paths)}. Clients reach only the first.",
            hint="Rename a class, or set its `name`; a base class is declared with `abstract=True`.",
            id="reliable_cable.E002",
        )
        for name, paths in duplicate_channels()
    ]


@register(TAG)
def check_engine(**kwargs: Any) -> list[CheckMessage]:
    """E003."""
    settings = _valid_settings()
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
            f"{NAME}['STREAMS'][{pattern!r}] is durable, but {streams.__module__}.{streams.__qualname__} keeps nothing "
            "durably.",
            hint=f"Use the 'database' engine, or drop 'durable' from {NAME}['STREAMS'][{pattern!r}].",
            id="reliable_cable.E003",
        )
        for pattern in settings.streams
        if settings.policy_of(pattern).durable
    ]


@register(TAG)
def check_database(**kwargs: Any) -> list[CheckMessage]:
    """E004, and of W001 what the settings show."""
    alias = _database()
    if alias is None:
        return []
    key = f"{NAME}['DATABASE']"
    problem = hint = ""
    vendor = ""
    if alias not in connections:
        problem = f"{key} is {alias!r}, which is not in DATABASES."
    else:
        try:
            vendor = connections[alias].vendor
        except ImproperlyConfigured as error:
            problem = f"{key} is {alias!r}, which cannot be used: {error}"
    if vendor not in ("", "sqlite", "postgresql"):
        problem = f"{key} is {alias!r}, which is on {vendor}; streams and sessions need SQLite or PostgreSQL."
    elif vendor == "sqlite" and str(connections[alias].settings_dict["NAME"]) == ":memory:":
        problem = f"{key} is {alias!r}, an SQLite database in memory, of which every thread gets another one."
        hint = "Use a file."
    elif vendor and not router.allow_migrate_model(alias, apps.get_model("reliable_cable", "Session")):
        problem = f"{key} is {alias!r}, but DATABASE_ROUTERS do not let the app's tables be made there."
        hint = f"Let allow_migrate({alias!r}, 'reliable_cable') be True."
    if problem:
        return [Error(problem, hint=hint or None, id="reliable_cable.E004")]
    if vendor == "sqlite":
        mode = str(connections[alias].settings_dict["OPTIONS"].get("transaction_mode") or "DEFERRED").upper()
        if mode == "DEFERRED":
            return [
                _sqlite_warning(
                    alias,
                    f"DATABASES[{alias!r}] begins its transactions as DEFERRED. If a transaction of your code reads "
                    "before it writes, its first write fails ('database is locked') while another transaction is "
                    "writing. Broadcasts inside your transactions are such writes too",
                )
            ]
    return []


@register(Tags.database)
def check_journal_mode(*, databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """W001, as far as the database itself has to be asked."""
    alias = _database()
    if alias is None or alias not in (databases or ()) or alias not in connections:
        return []
    connection = connections[alias]
    if connection.vendor != "sqlite":
        return []
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        mode = cursor.fetchone()[0]
    # A database in memory has no journal in a file, and knows no WAL.
    if mode in ("wal", "memory"):
        return []
    return [
        _sqlite_warning(
            alias,
            f"DATABASES[{alias!r}] is in journal mode {mode!r}, not 'wal': readers and writers wait for each other",
        )
    ]


@register(TAG)
def check_runserver(**kwargs: Any) -> list[CheckMessage]:
    """W002; only with `DEBUG`, where `runserver` is at home."""
    if not django_settings.DEBUG:
        return []
    served_by = get_commands().get("runserver")
    if served_by in WSGI_RUNSERVERS:
        return [
            Warning(
                "`runserver` is a WSGI server here, which serves no WebSockets.",
                hint="Put 'daphne' into INSTALLED_APPS, before 'django.contrib.staticfiles'.",
                id="reliable_cable.W002",
            )
        ]
    if served_by == "daphne" and not getattr(django_settings, "ASGI_APPLICATION", None):
        return [
            Warning(
                "`runserver` has no ASGI application to serve.",
                hint="Set ASGI_APPLICATION to the path of the application in your asgi.py.",
                id="reliable_cable.W002",
            )
        ]
    return []


@register(TAG)
def check_public_streams(**kwargs: Any) -> list[CheckMessage]:
    """W003."""
    settings = _valid_settings()
    if settings is None or not settings.public_streams or django_settings.DEBUG:
        return []
    return [
        Warning(
            f"{NAME}['PUBLIC_STREAMS'] is on: whoever can connect can read every stream by its name.",
            hint="Hand out signed stream names instead (`signed_stream_name`).",
            id="reliable_cable.W003",
        )
    ]


@register(TAG)
def check_channel_layers(**kwargs: Any) -> list[CheckMessage]:
    """W004.

    The core layer of channels-redis 4.3.0 waits up to 5 s for a message, and redis-py 8 gives up after 5 s, too, unless
    told otherwise. The pub/sub layer is not concerned: it waits 0.1 s at a time.
    """
    if version("channels-redis") != "4.3.0" or int(version("redis").split(".")[0]) < 8:
        return []
    return [
        Warning(
            f"CHANNEL_LAYERS[{alias!r}] raises TimeoutError after 5 idle seconds: channels-redis 4.3.0 does not "
            "expect redis-py 8's default socket_timeout.",
            hint=(
                f"Give each of CHANNEL_LAYERS[{alias!r}]['CONFIG']['hosts'] a longer one: "
                '{"address": "redis://…", "socket_timeout": 30} or "redis://…?socket_timeout=30" (None: no limit). Or '
                "use channels_redis.pubsub.RedisPubSubChannelLayer, or redis-py 7."
            ),
            id="reliable_cable.W004",
        )
        for alias, options in getattr(django_settings, "CHANNEL_LAYERS", {}).items()
        if _is_core_layer(options.get("BACKEND")) and not _waits_long(options.get("CONFIG", {}).get("hosts"))
    ]


def _is_core_layer(path: Any) -> bool:
    from channels_redis.core import RedisChannelLayer

    try:
        backend = import_string(path)
    except (ImportError, AttributeError):
        return False  # Channels will say so
    return isinstance(backend, type) and issubclass(backend, RedisChannelLayer)


def _waits_long(hosts: Any) -> bool:
    """Whether every connection of a core layer waits longer for an answer than the layer lets Redis wait."""
    from channels_redis.core import RedisChannelLayer
    from channels_redis.utils import decode_hosts

    try:
        timeouts = [_socket_timeout(host) for host in decode_hosts(hosts)]
    except ValueError:
        return True  # the layer refuses it
    return all(timeout is None or timeout > RedisChannelLayer.brpop_timeout for timeout in timeouts)


def _socket_timeout(host: Mapping[str, Any]) -> float | None:
    """Return the time-out of a decoded host, in seconds; None: there is none; 0: it does not say."""
    in_url = parse_qs(urlsplit(str(host.get("address", ""))).query).get("socket_timeout")
    timeout: float | None = float(in_url[-1]) if in_url else host.get("socket_timeout", 0)
    return timeout


def _valid_settings() -> CableSettings | None:
    try:
        return get_settings()
    except ImproperlyConfigured:
        return None  # E001 has said so


def _database() -> str | None:
    """Return the alias of the database that streams or sessions are kept in; None if they are not, or E001, E003."""
    settings = _valid_settings()
    if settings is None:
        return None
    try:
        classes = engine_classes(settings)
    except ImproperlyConfigured:
        return None
    return settings.database if any(classes[part].uses_database for part in ("streams", "sessions")) else None


def _sqlite_warning(alias: str, problem: str) -> Warning:
    return Warning(f"{problem}.", hint=SQLITE_HINT % {"alias": alias}, id="reliable_cable.W001")
