"""Re-exports `ModelStreamStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.streams.model import ModelStreamStore

__all__ = ["ModelStreamStore"]
