"""The options of connections to Redis."""

from typing import Any, Final

from redis.backoff import NoBackoff
from redis.retry import Retry

from reliable_cable.conf import CableSettings

#: The default options of a connection, which `REDIS_OPTIONS` overrides. Times are in seconds. All options are explicit,
#: because the defaults of redis-py differ between its versions.
DEFAULT_OPTIONS: Final = {
    "socket_timeout": 5.0,
    "socket_connect_timeout": 2.0,
    "socket_keepalive": True,
    "health_check_interval": 0,
    "protocol": 2,
    "max_connections": 64,
}


def pool_options(settings: CableSettings) -> dict[str, Any]:
    """Return the arguments of a connection pool."""
    options: dict[str, Any] = {**DEFAULT_OPTIONS, **settings.redis_options}
    if settings.redis_url is not None and settings.redis_url.startswith("unix://"):
        options.pop("socket_keepalive", None)  # this option is only for TCP
    # REDIS_OPTIONS cannot change these options, because the clients expect bytes, and retry calls themselves.
    return {**options, "decode_responses": False, "retry": Retry(NoBackoff(), 0), "retry_on_timeout": False}
