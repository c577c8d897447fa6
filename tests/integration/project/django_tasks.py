"""Tasks of Django (6.0 and later) that broadcast."""

from __future__ import annotations

from typing import Any

from django.tasks import task  # type: ignore[import-not-found,unused-ignore]  # Django 5.2 has none

import reliable_cable
from tests.integration.project import calls


@task  # type: ignore[misc,unused-ignore]
def announce(stream: str, data: Any) -> None:
    """Broadcast outside of a transaction."""
    reliable_cable.broadcast(stream, data)


@task  # type: ignore[misc,unused-ignore]
async def aannounce(stream: str, data: Any) -> None:
    """Broadcast from an async task."""
    await reliable_cable.abroadcast(stream, data)


@task  # type: ignore[misc,unused-ignore]
def announce_in_transaction(stream: str, data: Any, *, commit: bool) -> None:
    """Broadcast inside a transaction that is then committed or rolled back."""
    calls.broadcast_in_transaction(stream, data, commit=commit)
