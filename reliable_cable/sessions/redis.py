"""The former path of `RedisSessionStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.sessions.redis import RedisSessionStore as RedisSessionStore
