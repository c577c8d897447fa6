"""The consumer, which decides who may connect."""

from __future__ import annotations

from reliable_cable import CableConsumer


class AppConsumer(CableConsumer):
    """Serves the cable to users who are logged in."""

    identified_by = ("user",)

    async def connect(self) -> None:
        """Reject connections without a logged-in user. AuthMiddlewareStack has put the user into the scope."""
        self.user = self.scope["user"]
        if not self.user.is_authenticated:
            self.reject_connection()
