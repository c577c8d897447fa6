"""Connection level: who may connect."""

from __future__ import annotations

from reliable_cable import CableConsumer


class AppConsumer(CableConsumer):
    """Serves the cable to users who are logged in."""

    identified_by = ("user",)

    async def connect(self) -> None:
        """Take the user from the session, as AuthMiddlewareStack found it."""
        self.user = self.scope["user"]
        if not self.user.is_authenticated:
            self.reject_connection()
