"""The consumer, which decides who may connect."""

from __future__ import annotations

from reliable_cable import CableConsumer


class AppConsumer(CableConsumer):
    """Accepts connections of users who are logged in."""

    identified_by = ("user",)

    async def connect(self) -> None:
        """Reject the connection if its user is not logged in. `AuthMiddlewareStack` has put the user into the scope."""
        self.user = self.scope["user"]
        if not self.user.is_authenticated:
            self.reject_connection()
