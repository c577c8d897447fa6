"""Re-exports `MemorySessionStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.sessions.memory import MemorySessionStore

__all__ = ["MemorySessionStore"]
