"""The connection: whoever has the user name `outcast` is refused; and one that listens to the channel layer."""

from __future__ import annotations

from typing import Any

from reliable_cable import CableConsumer, abroadcast


class ProjectConsumer(CableConsumer):
    """Identified by the user, whom `AuthMiddlewareStack` found in the session."""

    def connect(self) -> None:
        """Let everybody in but one."""
        if self.user.is_authenticated and self.user.username == "outcast":
            self.reject_connection()


class LayeredConsumer(ProjectConsumer):
    """Relays what it hears from the channel layer's group `notes` to the stream that the message names."""

    channel_layer_alias = "default"

    async def connect(self) -> None:  # type: ignore[override]
        """Join the group."""
        await self.channel_layer.group_add("notes", self.channel_name)

    async def disconnect(self, code: int) -> None:
        """Leave the group."""
        await self.channel_layer.group_discard("notes", self.channel_name)

    async def note(self, message: dict[str, Any]) -> None:
        """Relay, and say who did."""
        assert self.session is not None
        await abroadcast(message["stream"], {"text": message["text"], "by": self.session.sid})
