"""The former path of `RedisStreamStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.streams.redis import RedisStreamStore as RedisStreamStore
