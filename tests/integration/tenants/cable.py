"""The channel of the project."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model

from reliable_cable import Channel, action


class TenantChannel(Channel):
    """Sends its client the broadcasts to user 1 of the tenant."""

    def subscribed(self) -> None:
        """Transmit the name of user 1 of the tenant, start the stream of that user, and join presence."""
        user = get_user_model().objects.get(pk=1)
        self.transmit({"user": user.get_username()})
        self.stream_for(user)
        self.presence.join(user.get_username())

    @action
    def say(self, data: dict[str, Any]) -> None:
        """Broadcast to the user."""
        self.broadcast_to(get_user_model().objects.get(pk=1), data["text"])
