"""The former path of `SessionStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.sessions.base import SessionStore

__all__ = ["SessionStore"]
