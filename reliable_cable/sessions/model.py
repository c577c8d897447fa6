"""Re-exports `ModelSessionStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.sessions.model import ModelSessionStore

__all__ = ["ModelSessionStore"]
