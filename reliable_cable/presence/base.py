"""Re-exports `PresenceStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.presence.base import PresenceStore

__all__ = ["PresenceStore"]
