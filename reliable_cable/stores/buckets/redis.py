"""Token buckets in Redis, which all processes share."""

from reliable_cable.conf import RateLimit
from reliable_cable.stores.redis.client import Call
from reliable_cable.stores.redis.keys import bucket_key
from reliable_cable.stores.redis.store import RedisStore

from .base import Buckets


class RedisBuckets(RedisStore, Buckets):
    """Stores buckets in Redis. The key of a bucket expires when the bucket is full, because a new bucket is full too.

    Args:
        settings: the settings; `redis_url`, `redis_options` and `key_prefix` are used.
        clock: a clock for tests, which returns seconds since 1970. It replaces Redis's clock, but not for the expiry of
            keys.
    """

    async def atake(self, name: str, limit: RateLimit) -> bool:
        """Take a token from a bucket if it has one. Return whether a token was taken."""
        key = bucket_key(self.settings.key_prefix, name)
        (taken,) = await self.client.arun(Call("take", [key], [self.script_time(), limit.count, limit.period]))
        return bool(taken)
