"""The former path of `MemorySessionStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.sessions.memory import MemorySessionStore as MemorySessionStore
