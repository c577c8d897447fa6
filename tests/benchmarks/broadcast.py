"""Measures what `broadcast()` costs sync code, compared with the bare Lua script and with channel layers."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import redis
from asgiref.sync import async_to_sync
from channels_redis.core import RedisChannelLayer
from channels_redis.pubsub import RedisPubSubChannelLayer

from reliable_cable import broadcast
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.redis.client import Call, RedisClient
from reliable_cable.stores.redis.scripts import script_text
from reliable_cable.stores.streams.base import Message
from reliable_cable.stores.streams.redis import RedisStreamStore

PAYLOAD = {"n": 1, "text": "x" * 200}
#: The number of rounds. Their median is the result.
ROUNDS = 7
#: The number of calls of each kind in a round. A message to a group is sent a tenth as often.
CALLS = 300


def _time(call: Callable[[], Any], calls: int) -> float:
    """Return how long a call takes, in microseconds."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls * 1e6


def _bare_script(store: RedisStreamStore, url: str) -> Callable[[], Any]:
    """Return a function that calls the append script with prepared arguments, through redis-py's `register_script`."""
    client = redis.Redis.from_url(url)
    script = client.register_script(script_text("append"))
    store.client.run(Call("PING"))
    assert isinstance(store.client, RedisClient)
    assert store.client.lineage.identity is not None
    call = store._append_attempts([("bench-bare", Message('{"n":1,"text":"' + "x" * 200 + '"}'))])("")
    keys = [*call.keys, store.client.lineage.key]
    args: list[Any] = [store.client.lineage.identity.lineage, "0" * 16, *call.args[2:]]
    return lambda: script(keys=keys, args=args)


def measure(url: str) -> dict[str, float]:
    """Return how long each call takes, in microseconds: the median of rounds in which all calls are measured.

    Args:
        url: the URL of the Redis server, which is also in `RELIABLE_CABLE`.
    """
    store = get_engine().streams
    assert isinstance(store, RedisStreamStore)
    calls: dict[str, Callable[[], Any]] = {
        "broadcast()": lambda: broadcast("bench", PAYLOAD),
        "bare EVALSHA": _bare_script(store, url),
    }
    for name, layer in {
        "group_send, channels_redis.core": RedisChannelLayer([url]),
        "group_send, channels_redis.pubsub": RedisPubSubChannelLayer([url]),
    }.items():
        send = async_to_sync(layer.group_send)
        calls[name] = partial(send, "bench", {"type": "bench.message", **PAYLOAD})
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(_time(call, CALLS if "group" not in name else CALLS // 10))
    return {name: median(values) for name, values in times.items()}
