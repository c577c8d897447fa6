"""Re-exports `RedisPresenceStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.presence.redis import RedisPresenceStore

__all__ = ["RedisPresenceStore"]
