"""Re-exports `DurableStreamStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.streams.durable import DurableStreamStore

__all__ = ["DurableStreamStore"]
