"""Checks of projects that set `BROADCAST_ADAPTER`, so that their clients are connected to anycable-go (E008, W011)."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name

from reliable_cable.conf import BROADCAST_ADAPTERS, NAME, REDIS_ADAPTERS, CableSettings

from .valid_settings import TAG, valid_settings

#: The settings that Django uses with every adapter: for broadcasts and disconnects, tokens and signed names, HTTP
#: endpoints, and sync code.
USED: Final = frozenset(
    {
        *("BROADCAST_ADAPTER", "RPC_CONSUMER", "NAMESPACE", "MAX_BROADCAST_SIZE", "HANDLER_THREADS"),
        *("SECRET", "STREAMS_SECRET", "JWT_SECRET", "JWT_ALGORITHMS", "BROADCAST_KEY", "API_KEY", "API_URL"),
    }
)
#: The settings that only some adapters use, and these adapters.
USED_BY: Final[Mapping[str, Collection[str]]] = {
    "REDIS_URL": REDIS_ADAPTERS,
    "REDIS_OPTIONS": REDIS_ADAPTERS,
    "REDIS_CLUSTER": REDIS_ADAPTERS,
    "BROADCAST_CHANNEL": (*REDIS_ADAPTERS, "nats"),
    "NATS_URL": ("nats",),
    "NATS_OPTIONS": ("nats",),
    "HTTP_BROADCAST_URL": ("http",),
}
#: The settings that only calls of anycable-go use (`RPC_CONSUMER`), and for each the option of anycable-go with the
#: same purpose. It is empty if there is none.
USED_BY_CALLS: Final[Mapping[str, str]] = {
    "JWT_REQUIRED": "--enforce_jwt",
    "MAX_MESSAGE_SIZE": "--max_message_size",
    **dict.fromkeys(("JWT_LEEWAY", "JWT_JWKS", "JWT_AUDIENCE", "JWT_ISSUER", "JWT_USER_CLAIM", "AUTHENTICATORS"), ""),
    **dict.fromkeys(("RPC_KEY", "RPC_PRESENCE", "MAX_IDENTIFIER_SIZE"), ""),
}
#: The settings of the history, which are also options of `STREAMS`, and the options as above. Only one value has an
#: effect: a history size of 0 makes broadcasts transient. Another size has an effect in `STREAMS` if a size is 0.
HISTORY: Final[Mapping[str, str]] = {
    "HISTORY_SIZE": "--history_limit",
    "HISTORY_TTL": "--history_ttl",
    "HISTORY_META_TTL": "",
}
#: The settings that only servers of this package and their stores use, and the options as in `USED_BY_CALLS`.
UNUSED: Final[Mapping[str, str]] = {
    "SESSIONS_TTL": "--sessions_ttl",
    "PRESENCE_TTL": "--presence_ttl",
    "PING_INTERVAL": "--ping_interval",
    "PONG_TIMEOUT": "--pong_timeout",
    "PUBLIC_STREAMS": "--public_streams, which makes all streams public",
    "SIGNED_STREAMS_WHISPER": "--streams_whisper",
    "CORS_ORIGINS": "--allowed_origins",
    **dict.fromkeys(("PRESENCE_GRACE", "REAUTHENTICATE_INTERVAL", "KEY_PREFIX", "POLL_INTERVAL", "DATABASE"), ""),
    **dict.fromkeys(("NOTIFY", "RATE_LIMITS", "MAX_FRAME_RATE", "MAX_SUBSCRIPTIONS", "MAX_PENDING_SIZE"), ""),
    **dict.fromkeys(("RUN_LEASE", "RUN_MAX_READERS", "RUN_BROADCAST_INTERVAL", "RUN_BROADCAST_SIZE"), ""),
    **dict.fromkeys(("RUN_PERMISSIONS", "RUN_CHATS", "RUN_DURABLE_STREAMS"), ""),
}


@register(TAG)
def check_broadcast_adapter(**kwargs: Any) -> list[CheckMessage]:
    """Report apps that need the history of streams, which is in anycable-go (E008)."""
    settings = valid_settings()
    if settings is None or settings.broadcast_adapter is None or not apps.is_installed("reliable_cable.runs"):
        return []
    return [
        Error(
            f"{NAME}['BROADCAST_ADAPTER'] is {settings.broadcast_adapter!r}, but the app 'reliable_cable.runs' is "
            "installed. The readers of runs need the history of streams, which is in anycable-go.",
            hint=f"Remove 'reliable_cable.runs' from INSTALLED_APPS, or remove {NAME}['BROADCAST_ADAPTER'].",
            id="reliable_cable.E008",
        )
    ]


@register(TAG)
def check_unused_settings(**kwargs: Any) -> list[CheckMessage]:
    """Report settings that have no effect on anycable-go, and a broadcast key derived from `SECRET_KEY` (W011)."""
    settings = valid_settings()
    if settings is None or settings.broadcast_adapter is None:
        return []
    given = getattr(django_settings, NAME, {})
    found: list[CheckMessage] = [
        Warning(
            f"{NAME}{path} has no effect on clients of anycable-go, because {reason}.",
            hint=f"Remove the setting{f', and start anycable-go with {option}' if option else ''}.",
            id="reliable_cable.W011",
        )
        for path, reason, option in _unused(given, settings)
    ]
    if settings.broadcast_adapter == "http" and not {"SECRET", "BROADCAST_KEY"} & given.keys():
        found.append(
            Warning(
                f"{NAME}['BROADCAST_ADAPTER'] is 'http', but the key for anycable-go is derived from SECRET_KEY. "
                "anycable-go derives its key from its option --secret.",
                hint=f"Set {NAME}['SECRET'] to the secret of anycable-go, or {NAME}['BROADCAST_KEY'] to its key.",
                id="reliable_cable.W011",
            )
        )
    return found


def _unused(given: Mapping[str, Any], settings: CableSettings) -> Iterator[tuple[str, str, str]]:
    """Yield the given settings that have no effect.

    Args:
        given: the value of `RELIABLE_CABLE`. Values that are None, False or empty turn something off, and are skipped.
        settings: the settings that were made from it.

    Yields:
        The path of the setting, such as `['STREAMS']['chat:*']['history_ttl']`; the reason; the option of anycable-go.
    """
    adapter = f"{NAME}['BROADCAST_ADAPTER'] is {settings.broadcast_adapter!r}"
    elsewhere = f"{adapter}: clients are connected to anycable-go"
    for key, value in given.items():
        if value is None or value is False or (isinstance(value, Collection) and not value):
            continue
        if key in UNUSED:
            yield f"[{key!r}]", elsewhere, UNUSED[key]
        elif key in USED_BY_CALLS and settings.rpc_consumer is None:
            yield f"[{key!r}]", f"{NAME}['RPC_CONSUMER'] is not set: Django answers no calls", USED_BY_CALLS[key]
        elif settings.broadcast_adapter not in USED_BY.get(key, BROADCAST_ADAPTERS):
            yield f"[{key!r}]", adapter, ""
    histories = [("", given), *((f"['STREAMS'][{pattern!r}]", each) for pattern, each in settings.streams.items())]
    sizes = [settings.history_size, *(settings.policy_of(pattern).history_size for pattern in settings.streams)]
    for path, options in histories:
        for key, option in HISTORY.items():
            name = key.lower() if path else key
            if name in options and not (key == "HISTORY_SIZE" and (0 in sizes if path else sizes[0] == 0)):
                yield f"{path}[{name!r}]", elsewhere, option
