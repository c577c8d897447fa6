"""Re-exports `MemoryStreamStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.streams.memory import MemoryStreamStore

__all__ = ["MemoryStreamStore"]
