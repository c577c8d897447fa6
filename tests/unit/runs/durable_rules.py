"""The rules for the durable streams of a project."""

from __future__ import annotations

from typing import Any

from reliable_cable.runs.durable.access import DurableStreams
from reliable_cable.runs.durable_models import DurableStream


class Rules(DurableStreams):
    """Users create streams below their names. Everybody may read those whose names contain "open"."""

    max_streams = 3
    long_poll_time = 0.05

    def may_create(self, user: Any, name: str) -> bool:
        return name.startswith(user.get_username())

    def may_read(self, user: Any, stream: DurableStream) -> bool:
        return "open" in stream.name or super().may_read(user, stream)

    def may_write(self, user: Any, stream: DurableStream) -> bool:
        return super().may_read(user, stream)


class Guests(Rules):
    """Rules for people who are not logged in."""

    login_required = False

    def may_create(self, user: Any, name: str) -> bool:
        return True
