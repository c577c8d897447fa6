"""Checks of the channel layers in `CHANNEL_LAYERS` (W004)."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Warning, register  # noqa: A004 - Django's name
from django.utils.module_loading import import_string

from .valid_settings import TAG


@register(TAG)
def check_channel_layers(**kwargs: Any) -> list[CheckMessage]:
    """Report channel layers of channels-redis that fail when they are idle (W004).

    The core layer of channels-redis 4.3.0 waits up to 5 seconds for a message. The default `socket_timeout` of redis-py
    8 is also 5 seconds, so the wait may end with a `TimeoutError`. The pub/sub layer does not fail, because it waits
    only 0.1 seconds at a time.
    """
    if version("channels-redis") != "4.3.0" or int(version("redis").split(".")[0]) < 8:
        return []
    return [
        Warning(
            f"CHANNEL_LAYERS[{alias!r}] raises TimeoutError when it is idle for 5 seconds, because redis-py 8 has a "
            "default socket_timeout of 5 seconds, and channels-redis 4.3.0 waits as long for a message.",
            hint=(
                f"Set a longer timeout for each of CHANNEL_LAYERS[{alias!r}]['CONFIG']['hosts']: "
                '{"address": "redis://…", "socket_timeout": 30} or "redis://…?socket_timeout=30". Or use '
                "channels_redis.pubsub.RedisPubSubChannelLayer, or redis-py 7."
            ),
            id="reliable_cable.W004",
        )
        for alias, options in getattr(django_settings, "CHANNEL_LAYERS", {}).items()
        if _is_core_layer(options.get("BACKEND"))
        and not _all_timeouts_are_longer(options.get("CONFIG", {}).get("hosts"))
    ]


def _is_core_layer(path: Any) -> bool:
    from channels_redis.core import RedisChannelLayer

    try:
        backend = import_string(path)
    except (ImportError, AttributeError):
        return False  # Channels reports an error for a path that cannot be imported
    return isinstance(backend, type) and issubclass(backend, RedisChannelLayer)


def _all_timeouts_are_longer(hosts: Any) -> bool:
    """Return whether the timeout of every host is longer than `RedisChannelLayer` waits for a message."""
    from channels_redis.core import RedisChannelLayer
    from channels_redis.utils import decode_hosts

    try:
        timeouts = [_socket_timeout(host) for host in decode_hosts(hosts)]
    except ValueError:
        return True  # the layer raises an error for an invalid configuration
    return all(timeout is None or timeout > RedisChannelLayer.brpop_timeout for timeout in timeouts)


def _socket_timeout(host: Mapping[str, Any]) -> float | None:
    """Return the `socket_timeout` of a host, in seconds. None means no limit, and 0 means that it is not set."""
    in_url = parse_qs(urlsplit(str(host.get("address", ""))).query).get("socket_timeout")
    timeout: float | None = float(in_url[-1]) if in_url else host.get("socket_timeout", 0)
    return timeout
