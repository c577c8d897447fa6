"""The former path of `RedisPresenceStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.presence.redis import RedisPresenceListener as RedisPresenceListener
from reliable_cable.stores.presence.redis import RedisPresenceStore as RedisPresenceStore
