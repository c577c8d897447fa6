"""Re-exports `RedisSessionStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.sessions.redis import RedisSessionStore

__all__ = ["RedisSessionStore"]
