"""The former path of `PresenceStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.presence.base import PresenceStore

__all__ = ["PresenceStore"]
