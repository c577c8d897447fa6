"""The connection: whoever has the user name `outcast` is refused."""

from __future__ import annotations

from reliable_cable import CableConsumer


class ProjectConsumer(CableConsumer):
    """Identified by the user, whom `AuthMiddlewareStack` found in the session."""

    def connect(self) -> None:
        """Let everybody in but one."""
        if self.user.is_authenticated and self.user.username == "outcast":
            self.reject_connection()
