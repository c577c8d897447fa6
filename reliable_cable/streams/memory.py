"""The former path of `MemoryStreamStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.streams.memory import MemoryStreamStore as MemoryStreamStore
