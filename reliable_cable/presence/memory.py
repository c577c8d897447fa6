"""Re-exports `MemoryPresenceStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.presence.memory import MemoryPresenceStore

__all__ = ["MemoryPresenceStore"]
