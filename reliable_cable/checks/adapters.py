"""Checks of projects that set `BROADCAST_ADAPTER`, so that their clients are connected to anycable-go (E008, W011)."""

from collections.abc import Mapping
from typing import Any, Final

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name

from reliable_cable.conf import NAME

from .valid_settings import TAG, valid_settings

#: The settings that only servers of this package use, and for each the option of anycable-go with the same purpose.
OPTIONS: Final[Mapping[str, str]] = {
    "HISTORY_SIZE": "--history_limit",
    "HISTORY_TTL": "--history_ttl",
    "SESSIONS_TTL": "--sessions_ttl",
    "PRESENCE_TTL": "--presence_ttl",
    "PING_INTERVAL": "--ping_interval",
    "PONG_TIMEOUT": "--pong_timeout",
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
            f"{NAME}[{key!r}] has no effect, because {NAME}['BROADCAST_ADAPTER'] is set: clients are connected to "
            "anycable-go.",
            hint=f"Remove the setting, and start anycable-go with {option}.",
            id="reliable_cable.W011",
        )
        for key, option in OPTIONS.items()
        if key in given
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
