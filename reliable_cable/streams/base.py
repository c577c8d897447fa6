"""The former path of `StreamStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.streams.base import StreamStore

__all__ = ["StreamStore"]
