"""System checks. Their ids never change, so that `SILENCED_SYSTEM_CHECKS` can list them.

| id | problem |
|---|---|
| `reliable_cable.E001` | The setting `RELIABLE_CABLE` has an unknown key, a wrong type or an impossible value. |
| `reliable_cable.E002` | Several channel classes have the same name. |
| `reliable_cable.E003` | The engine cannot be imported, or does not support what the settings require. |
| `reliable_cable.E004` | The database that `DATABASE` names cannot store streams and sessions. |
| `reliable_cable.E005` | All streams are public. This is checked only by `check --deploy`. |
| `reliable_cable.E006` | The settings of tokens need a package that is not installed, or name a wrong authenticator. |
| `reliable_cable.W001` | SQLite is configured so that concurrent transactions fail or wait for each other. |
| `reliable_cable.W002` | `runserver` serves no WebSockets. |
| `reliable_cable.W003` | All streams are public although `DEBUG` is off. `check --deploy` reports E005 in its place. |
| `reliable_cable.W004` | A channel layer of channels-redis fails when it is idle, because of redis-py 8. |
| `reliable_cable.W005` | Streams or presence are in the memory of one process. Only `check --deploy` looks for it. |
| `reliable_cable.W006` | Database connections are kept without health checks. Only `check --deploy` looks for it. |
| `reliable_cable.W007` | Nothing calls a method of a channel: `subscribe`, or a hook of a base after `Channel`. |
| `reliable_cable.W008` | The secret that signs tokens is short. |

If the settings are invalid (E001), the checks that need them are skipped. The part of W001 about WAL needs a database
connection. It runs only when Django checks databases: in `migrate` and `check --database default`.
"""

import sys
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

from .auth.tokens import MIN_SECRET_SIZE, secret_of
from .auth.verification import TokenVerifier
from .conf import HMAC_ALGORITHMS, NAME, CableSettings, get_settings
from .namespaces import find_callable
from .stores.engine import engine_classes, get_engine
from .stores.presence.memory import MemoryPresenceStore
from .stores.streams.memory import MemoryStreamStore

TAG = "reliable_cable"

SQLITE_HINT = (
    "Set 'OPTIONS': {'transaction_mode': 'IMMEDIATE', 'init_command': 'PRAGMA journal_mode=WAL;'} in "
    "DATABASES[%(alias)r]. Transactions then wait for each other when they begin, and readers do not wait at all. "
    "Broadcasts outside of transactions do not need this."
)

PUBLIC_STREAMS_PROBLEM = (
    f"{NAME}['PUBLIC_STREAMS'] opens all streams except those of channels: every client that can connect can read "
    "them, send whispers to them, and join their presence under any id."
)
PUBLIC_STREAMS_HINT = (
    "List the patterns of the public streams, such as ['news:*'], and give signed names of the others to clients "
    "(`signed_stream_name`)."
)

#: The handler of each command of a client.
HANDLERS = {"subscribe": "subscribed", "unsubscribe": "unsubscribed"}
#: The methods of channels that are called if a subclass has them.
HOOKS = (*HANDLERS.values(), "resubscribed", "before_subscribe", "before_action", "handle_error", "authorize_presence")

#: The apps whose `runserver` serves WSGI only.
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
def check_channel_names(**kwargs: Any) -> list[CheckMessage]:
    """Report channel classes with the same name (E002)."""
    # Importing this module reads the settings. If they are invalid, E001 must be reported in place of an error here.
    from .channel import registry

    return [
        Error(
            f"{len(classes)} channels have the name {name!r}: "
            f"{', '.join(f'{cls.__module__}.{cls.__qualname__}' for cls in classes)}. Clients reach only the first.",
            hint="Rename a class or set its `name`. Declare a base class with `abstract=True`.",
            id="reliable_cable.E002",
        )
        for name, classes in registry.items()
        if len(classes) > 1
    ]


@register(TAG)
def check_handler_names(**kwargs: Any) -> list[CheckMessage]:
    """Report methods that seem to be handlers, but have the name of a command, so that nothing calls them (W007)."""
    from .channel import Channel

    return [
        Warning(
            f"{cls.__module__}.{cls.__qualname__} has a method {command!r}, but no {handler!r}. Nothing calls it.",
            hint=f"Rename {command!r} to {handler!r}.",
            id="reliable_cable.W007",
        )
        for cls in _channel_classes()
        for command, handler in HANDLERS.items()
        if callable(getattr(cls, command, None))
        and command not in cls.action_names()
        and getattr(cls, handler) is getattr(Channel, handler)
    ]


@register(TAG)
def check_order_of_bases(**kwargs: Any) -> list[CheckMessage]:
    """Report hooks of base classes that stand after `Channel`, whose own methods hide them (W007)."""
    from .channel import Channel

    return [
        Warning(
            f"{cls.__module__}.{cls.__qualname__} has the base {base.__qualname__} after Channel. Nothing calls "
            f"{base.__qualname__}.{hook}, because Channel.{hook} hides it.",
            hint=f"Write the base first: class {cls.__name__}({base.__name__}, Channel).",
            id="reliable_cable.W007",
        )
        for cls in _channel_classes()
        for base in cls.__mro__[cls.__mro__.index(Channel) + 1 :]
        for hook in HOOKS
        if hook in vars(base) and getattr(cls, hook) is getattr(Channel, hook, None)
    ]


def _channel_classes() -> list[Any]:
    """Return the channel classes that clients can subscribe to."""
    from .channel import registry

    return [cls for same in registry.values() for cls in same]


@register(TAG)
def check_engine(**kwargs: Any) -> list[CheckMessage]:
    """Report an engine that cannot be used, or that cannot store durable streams (E003)."""
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
    """Report that tokens cannot be verified (E006), or that their secret is short (W008)."""
    settings = _valid_settings()
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
            f"{NAME}[{key!r}] has {size} bytes. Who has a token can find out a short secret by trying, and can then "
            "make tokens for every user.",
            hint=f"Set JWT_SECRET to a random text of at least {MIN_SECRET_SIZE} bytes.",
            id="reliable_cable.W008",
        )
    ]


@register(TAG)
def check_database(**kwargs: Any) -> list[CheckMessage]:
    """Report a database that cannot be used (E004), and a transaction mode of SQLite that causes errors (W001)."""
    alias = _database()
    if alias is None:
        return []
    if alias not in connections:
        return _database_error(f"{alias!r}, which is not a key of DATABASES.")
    try:
        vendor = connections[alias].vendor
    except ImproperlyConfigured as error:
        return _database_error(f"{alias!r}, which cannot be used: {error}")
    if vendor not in ("sqlite", "postgresql"):
        return _database_error(f"{alias!r}, a {vendor} database; streams and sessions need SQLite or PostgreSQL.")
    settings = connections[alias].settings_dict
    if vendor == "sqlite" and str(settings["NAME"]) == ":memory:":
        return _database_error(
            f"{alias!r}, an SQLite database in memory. Each thread would use a database of its own.",
            f"Set DATABASES[{alias!r}]['NAME'] to the path of a file.",
        )
    if not router.allow_migrate_model(alias, apps.get_model("reliable_cable", "Session")):
        return _database_error(
            f"{alias!r}, but DATABASE_ROUTERS do not allow the tables of reliable_cable there.",
            f"Return True from allow_migrate() of your router for {alias!r} and the app 'reliable_cable'.",
        )
    if vendor == "sqlite" and str(settings["OPTIONS"].get("transaction_mode") or "DEFERRED").upper() == "DEFERRED":
        problem = (
            f"DATABASES[{alias!r}] begins its transactions as DEFERRED. If a transaction of your code reads before it "
            "writes, its first write fails ('database is locked') while another transaction is writing. A broadcast "
            "inside your transaction is such a write, too"
        )
        return [_sqlite_warning(alias, problem)]
    return []


@register(Tags.database)
def check_journal_mode(*, databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Report an SQLite database without WAL (W001)."""
    alias = _database()
    if alias is None or alias not in (databases or ()) or alias not in connections:
        return []
    connection = connections[alias]
    if connection.vendor != "sqlite":
        return []
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode")
        mode = cursor.fetchone()[0]
    # A database in memory cannot use WAL.
    if mode in ("wal", "memory"):
        return []
    return [
        _sqlite_warning(
            alias,
            f"DATABASES[{alias!r}] uses the journal mode {mode!r}, not 'wal': readers and writers wait for each other",
        )
    ]


@register(TAG)
def check_runserver(**kwargs: Any) -> list[CheckMessage]:
    """Report a `runserver` that serves no WebSockets (W002). This is checked only if `DEBUG` is on."""
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
    """Report that all streams are public if `DEBUG` is off (W003). In `check --deploy`, leave that to E005."""
    # Django does not tell a check whether the deployment checks run, too.
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
    """Report streams or presence in the memory of one process (W005)."""
    settings = _valid_settings()
    if settings is None:
        return []
    try:
        classes = engine_classes(settings)
    except ImproperlyConfigured:
        return []  # reported as E003
    if issubclass(classes["streams"], MemoryStreamStore):
        problem = (
            "Streams are in the memory of one process. A broadcast from another process (a second server process, a "
            "task, the shell) reaches no client of this one, and a restart loses every history."
        )
        hint = f"Remove {NAME}['ENGINE'], so that streams are in the database, or set {NAME}['REDIS_URL']."
    elif issubclass(classes["presence"], MemoryPresenceStore):
        problem = "Presence is in the memory of each process. Members on other processes are not seen."
        hint = f"Set {NAME}['REDIS_URL'], or run one server process only and silence this check."
    else:
        return []
    return [Warning(problem, hint=hint, id="reliable_cable.W005")]


@register(TAG, deploy=True)
def check_health_checks(**kwargs: Any) -> list[CheckMessage]:
    """Report databases whose connections are kept (`CONN_MAX_AGE`) but not checked (`CONN_HEALTH_CHECKS`) (W006).

    Sync handlers, stores and `CableAuthMiddlewareStack` check their connections themselves. Channels'
    `AuthMiddlewareStack` and Django's views do not.
    """
    return [
        Warning(
            f"DATABASES[{alias!r}] keeps connections (CONN_MAX_AGE) without health checks. After a restart of the "
            "database, the next WebSocket handshake with AuthMiddlewareStack fails, and so do the next requests.",
            hint=f"Set DATABASES[{alias!r}]['CONN_HEALTH_CHECKS'] to True.",
            id="reliable_cable.W006",
        )
        for alias, options in django_settings.DATABASES.items()
        if options.get("CONN_MAX_AGE", 0) != 0
        and not options.get("CONN_HEALTH_CHECKS")
        and "sqlite" not in options.get("ENGINE", "")
    ]


def _all_streams_are_public() -> bool:
    settings = _valid_settings()
    patterns = () if settings is None else settings.public_streams
    return any("*" in pattern and not pattern.strip("*?") for pattern in patterns)


@register(TAG)
def check_channel_layers(**kwargs: Any) -> list[CheckMessage]:
    """Report channel layers of channels-redis that fail when they are idle (W004).

    The core layer of channels-redis 4.3.0 waits up to 5 seconds for a message. The default `socket_timeout` of redis-py
    8 is also 5 seconds. The pub/sub layer has no such problem, because it waits only 0.1 seconds at a time.
    """
    if version("channels-redis") != "4.3.0" or int(version("redis").split(".")[0]) < 8:
        return []
    return [
        Warning(
            f"CHANNEL_LAYERS[{alias!r}] raises TimeoutError after 5 idle seconds, because channels-redis 4.3.0 "
            "does not expect the default socket_timeout of redis-py 8.",
            hint=(
                f"Set a longer timeout for each of CHANNEL_LAYERS[{alias!r}]['CONFIG']['hosts']: "
                '{"address": "redis://…", "socket_timeout": 30} or "redis://…?socket_timeout=30" (None: no limit). Or '
                "use channels_redis.pubsub.RedisPubSubChannelLayer, or redis-py 7."
            ),
            id="reliable_cable.W004",
        )
        for alias, options in getattr(django_settings, "CHANNEL_LAYERS", {}).items()
        if _is_core_layer(options.get("BACKEND"))
        and not _all_timeouts_are_longer(options.get("CONFIG", {}).get("hosts"))
    ]


def _is_core_layer(path: Any) -> bool:
    from channels_redis.core import RedisChannelLayer

    try:
        backend = import_string(path)
    except (ImportError, AttributeError):
        return False  # Channels itself reports that the path cannot be imported
    return isinstance(backend, type) and issubclass(backend, RedisChannelLayer)


def _all_timeouts_are_longer(hosts: Any) -> bool:
    """Return whether the timeout of every host is longer than `RedisChannelLayer` waits for a message."""
    from channels_redis.core import RedisChannelLayer
    from channels_redis.utils import decode_hosts

    try:
        timeouts = [_socket_timeout(host) for host in decode_hosts(hosts)]
    except ValueError:
        return True  # the layer itself reports the wrong configuration
    return all(timeout is None or timeout > RedisChannelLayer.brpop_timeout for timeout in timeouts)


def _socket_timeout(host: Mapping[str, Any]) -> float | None:
    """Return the `socket_timeout` of a host in seconds, None if it has no limit, or 0 if it is not set."""
    in_url = parse_qs(urlsplit(str(host.get("address", ""))).query).get("socket_timeout")
    timeout: float | None = float(in_url[-1]) if in_url else host.get("socket_timeout", 0)
    return timeout


def _valid_settings() -> CableSettings | None:
    try:
        return get_settings()
    except ImproperlyConfigured:
        return None  # reported as E001


def _database() -> str | None:
    """Return the alias of the database of streams or sessions; None if none is used, or if settings are invalid."""
    settings = _valid_settings()
    if settings is None:
        return None
    try:
        classes = engine_classes(settings)
    except ImproperlyConfigured:
        return None
    return settings.database if any(classes[part].uses_database for part in ("streams", "sessions")) else None


def _database_error(problem: str, hint: str | None = None) -> list[CheckMessage]:
    return [Error(f"{NAME}['DATABASE'] is {problem}", hint=hint, id="reliable_cable.E004")]


def _sqlite_warning(alias: str, problem: str) -> Warning:
    return Warning(f"{problem}.", hint=SQLITE_HINT % {"alias": alias}, id="reliable_cable.W001")
