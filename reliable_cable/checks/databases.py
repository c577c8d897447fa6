"""Checks of databases (E004, W001, W006, W014)."""

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004 - Django's name
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, router

from reliable_cable.conf import ENGINE_PARTS, NAME
from reliable_cable.stores.engine import engine_classes
from reliable_cable.stores.presence.model import ModelPresenceStore
from reliable_cable.stores.streams.model import ModelStreamStore

from .valid_settings import TAG, valid_settings

SQLITE_HINT = (
    "Set 'OPTIONS': {'transaction_mode': 'IMMEDIATE', 'init_command': 'PRAGMA journal_mode=WAL;'} in "
    "DATABASES[%(alias)r]. Transactions then wait for each other when they begin, and readers never wait. Broadcasts "
    "outside of transactions work without this."
)


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
            "inside a transaction is a write, too"
        )
        return [_sqlite_warning(alias, problem)]
    return []


@register(Tags.database)
def check_journal_mode(*, databases: Sequence[str] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Report an SQLite database whose journal mode is not WAL (W001)."""
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


@register(TAG, deploy=True)
def check_health_checks(**kwargs: Any) -> list[CheckMessage]:
    """Report databases with `CONN_MAX_AGE`, but without `CONN_HEALTH_CHECKS` (W006).

    Sync handlers, stores and `CableAuthMiddlewareStack` check their database connections in any case. Channels'
    `AuthMiddlewareStack` and Django's views do so only if `CONN_HEALTH_CHECKS` is set.
    """
    return [
        Warning(
            f"DATABASES[{alias!r}] reuses connections (CONN_MAX_AGE) without health checks. After a restart of the "
            "database, the next WebSocket handshake with AuthMiddlewareStack fails, and so do the next requests.",
            hint=f"Set DATABASES[{alias!r}]['CONN_HEALTH_CHECKS'] to True.",
            id="reliable_cable.W006",
        )
        for alias, options in django_settings.DATABASES.items()
        if options.get("CONN_MAX_AGE", 0) != 0
        and not options.get("CONN_HEALTH_CHECKS")
        and "sqlite" not in options.get("ENGINE", "")
    ]


@register(TAG)
def check_transaction_pooling(**kwargs: Any) -> list[CheckMessage]:
    """Report a PostgreSQL database whose connections go through a pooler in transaction mode (W014).

    The check looks for `DISABLE_SERVER_SIDE_CURSORS`, which Django's docs require for such a pooler. The pooler accepts
    LISTEN, but does not pass on notifications.
    """
    alias = _listening_alias()
    if alias is None:
        return []
    options = django_settings.DATABASES.get(alias, {})
    if "postgresql" not in options.get("ENGINE", "") or not options.get("DISABLE_SERVER_SIDE_CURSORS"):
        return []
    return [
        Warning(
            f"DATABASES[{alias!r}] has DISABLE_SERVER_SIDE_CURSORS, as for a connection pooler in transaction mode. "
            "Such a pooler passes no notifications on, so messages of other processes are found by polling.",
            hint=(
                f"Add a database to DATABASES that connects to PostgreSQL directly, and set {NAME}['NOTIFY'] to its "
                f"alias. Or set {NAME}['NOTIFY'] to False."
            ),
            id="reliable_cable.W014",
        )
    ]


@register(TAG)
def check_notify_alias(**kwargs: Any) -> list[CheckMessage]:
    """Report a setting `NOTIFY` that names a database other than PostgreSQL, because only PostgreSQL has LISTEN (E004).

    If `DATABASE` is not PostgreSQL, `NOTIFY` has no effect, and is not reported.
    """
    settings, alias = valid_settings(), _listening_alias()
    if settings is None or alias is None or settings.notify != alias:
        return []
    try:
        if connections[settings.database].vendor != "postgresql" or connections[alias].vendor == "postgresql":
            return []
        problem = f"{alias!r}, a {connections[alias].vendor} database; LISTEN needs PostgreSQL."
    except ImproperlyConfigured as error:
        problem = f"{alias!r}, which cannot be used: {error}"
    hint = (
        f"Set {NAME}['NOTIFY'] to the alias of a direct connection to the database {settings.database!r}, or to True."
    )
    return [Error(f"{NAME}['NOTIFY'] is {problem}", hint=hint, id="reliable_cable.E004")]


def _listening_alias() -> str | None:
    """Return the alias of the database through which servers LISTEN. It may be a database other than PostgreSQL.

    Returns:
        None if no part of the engine uses notifications, or if the settings are invalid or turn them off.
    """
    settings = valid_settings()
    if settings is None or settings.notify is False or not settings.handler_threads or _database() is None:
        return None
    classes = engine_classes(settings)
    notifying = issubclass(classes["streams"], ModelStreamStore) or issubclass(classes["presence"], ModelPresenceStore)
    if not notifying:
        return None
    return settings.notify if isinstance(settings.notify, str) else settings.database


def _database() -> str | None:
    """Return the alias of the database that stores streams, members or sessions.

    Returns:
        None if the engine uses no database, or if the settings are invalid.
    """
    settings = valid_settings()
    if settings is None:
        return None
    try:
        classes = engine_classes(settings)
    except ImproperlyConfigured:
        return None
    return settings.database if any(classes[part].uses_database for part in ENGINE_PARTS) else None


def _database_error(problem: str, hint: str | None = None) -> list[CheckMessage]:
    return [Error(f"{NAME}['DATABASE'] is {problem}", hint=hint, id="reliable_cable.E004")]


def _sqlite_warning(alias: str, problem: str) -> Warning:
    return Warning(f"{problem}.", hint=SQLITE_HINT % {"alias": alias}, id="reliable_cable.W001")
