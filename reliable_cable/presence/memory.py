"""The former import path of `MemoryPresenceStore`. The setting `ENGINE` of a project may still contain it."""

from reliable_cable.stores.presence.memory import MemoryPresenceListener as MemoryPresenceListener
from reliable_cable.stores.presence.memory import MemoryPresenceStore as MemoryPresenceStore
