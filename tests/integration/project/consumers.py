"""The consumers of the project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from django.db import connection
from django.utils import translation

from reliable_cable import CableConsumer, abroadcast


class ProjectConsumer(CableConsumer):
    """A consumer that is identified by the user of the session."""

    def connect(self) -> None:
        """Reject the user `outcast`, and the token `expired`."""
        if b"token=expired" in self.scope["query_string"]:
            self.reject_connection(reason="token_expired")
        elif self.user.is_authenticated and self.user.username == "outcast":
            self.reject_connection()


class LayeredConsumer(ProjectConsumer):
    """Broadcasts messages of the group `notes` of the channel layer, to the stream that each message names."""

    channel_layer_alias = "default"

    async def connect(self) -> None:  # type: ignore[override]
        """Join the group `notes`."""
        await self.channel_layer.group_add("notes", self.channel_name)

    async def disconnect(self, code: int) -> None:
        """Leave the group `notes`."""
        await self.channel_layer.group_discard("notes", self.channel_name)

    async def note(self, message: dict[str, Any]) -> None:
        """Broadcast a message of the group, with the session id of this connection."""
        assert self.session is not None
        await abroadcast(message["stream"], {"text": message["text"], "by": self.session.sid})


class TenantConsumer(CableConsumer):
    """Runs handlers with the tenant and the language of the query string.

    It sets the tenant as an attribute of the thread's database connection, as django-tenants does.
    """

    def connect(self) -> None:
        """Read the tenant and the language from the query string."""
        query = parse_qs(self.scope["query_string"].decode())
        self.tenant = query["tenant"][0]
        self.language = query["language"][0]

    @contextmanager
    def around_command(self) -> Iterator[None]:
        """Set the tenant and the language for a command, and reset both after it."""
        connection.tenant = self.tenant  # type: ignore[attr-defined]
        try:
            with translation.override(self.language):
                yield
        finally:
            del connection.tenant  # type: ignore[attr-defined]
