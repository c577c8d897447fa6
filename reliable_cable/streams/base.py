"""Re-exports `StreamStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.streams.base import StreamStore

__all__ = ["StreamStore"]
