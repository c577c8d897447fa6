"""The former path of `MemoryPresenceStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.presence.memory import MemoryPresenceListener as MemoryPresenceListener
from reliable_cable.stores.presence.memory import MemoryPresenceStore as MemoryPresenceStore
