"""The former path of `RedisPresenceStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.presence.redis import RedisPresenceListener, RedisPresenceStore

__all__ = ["RedisPresenceListener", "RedisPresenceStore"]
