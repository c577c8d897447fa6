"""Re-exports `SessionStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.sessions.base import SessionStore

__all__ = ["SessionStore"]
