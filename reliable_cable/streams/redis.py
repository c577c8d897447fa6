"""Re-exports `RedisStreamStore`, for settings that name it by this path (`ENGINE`)."""

from reliable_cable.stores.streams.redis import RedisStreamStore

__all__ = ["RedisStreamStore"]
