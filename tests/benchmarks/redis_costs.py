"""Measures the CPU time and the memory of Redis for one broadcast, one session and one stream."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import redis

from reliable_cable import broadcast
from reliable_cable.stores.engine import get_engine
from reliable_cable.stores.sessions.base import SessionRecord
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.support.redis import RedisServer

RESULTS: Final = Path(__file__).parent / "results" / "redis.json"
#: The payload has about 200 bytes of JSON, as in `fanout`.
PAYLOAD: Final = {"n": 1, "text": "x" * 180}
BROADCASTS: Final = 3000
#: The number of connections that subscribe to the stream in the second measurement of broadcasts.
LISTENERS: Final = 16
SESSIONS: Final = 5000
STREAMS: Final = 2000


def run(server: RedisServer) -> int:
    """Measure, print the results as JSON, and write them to `results/redis.json`. Return 0."""
    results = measure(server)
    text = json.dumps(results, indent=1)
    RESULTS.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0


def measure(server: RedisServer) -> dict[str, float]:
    """Return the costs, in microseconds of CPU time and KiB of memory of Redis.

    Args:
        server: the Redis server, whose URL is in `RELIABLE_CABLE`. No other process may use it.
    """
    engine = get_engine()
    store = engine.streams
    assert isinstance(store, RedisStreamStore)
    client = redis.Redis.from_url(server.url)
    for number in range(BROADCASTS // 10):
        broadcast("alone", {**PAYLOAD, "n": number})
    alone = _cpu(client, lambda: _broadcasts("alone")) / BROADCASTS
    with _Listeners(server.url, store.channel("heard")):
        heard = _cpu(client, lambda: _broadcasts("heard")) / BROADCASTS
    records = {f"{number:024}": _record(number) for number in range(SESSIONS)}
    before = _memory(client)
    session = _cpu(client, lambda: _in_batches(engine.sessions.save, records)) / SESSIONS
    session_size = (_memory(client) - before) / SESSIONS
    before = _memory(client)
    for number in range(STREAMS):
        broadcast(f"stream{number}", PAYLOAD)
    stream_size = (_memory(client) - before) / STREAMS
    names = [f"stream{number}" for number in range(STREAMS)]
    opened = _cpu(client, lambda: asyncio.run(_read_positions(store, names))) / STREAMS
    return {
        "broadcast_us": round(alone, 1),
        "announcement_us": round((heard - alone) / LISTENERS, 2),
        "session_write_us": round(session, 1),
        "session_kib": round(session_size, 2),
        "stream_kib": round(stream_size, 2),
        "open_stream_us": round(opened, 1),
    }


def _broadcasts(stream: str) -> None:
    for number in range(BROADCASTS):
        broadcast(stream, {**PAYLOAD, "n": number})


def _in_batches(save: Callable[[Mapping[str, SessionRecord]], object], records: Mapping[str, SessionRecord]) -> None:
    """Save records a few at a time, like a server to which clients connect all the time."""
    items = list(records.items())
    for start in range(0, len(items), 10):
        save(dict(items[start : start + 10]))


async def _read_positions(store: RedisStreamStore, names: Sequence[str]) -> None:
    """Read the positions of streams a few at a time, like a server that opens them for new subscribers."""
    for start in range(0, len(names), 10):
        await store.apositions(names[start : start + 10])


def _record(number: int) -> SessionRecord:
    """Return the record of a session with two subscriptions of one stream each."""
    streams = [{"name": f"s:{number}", "id": "s1", "first": ["e" * 12, 41], "whisper": False, "presence": False}]
    subscription = {
        "identifier": '{"channel":"ChatChannel","id":1}',
        "state": "{}",
        "streams": streams,
        "subscribed": None,
        "left_at": None,
        "authorized": 1.7e9,
        "member": None,
        "watching": None,
        "key": "k" * 40,
    }
    data = {"sids": [], "alive": True, "left_at": 1.7e9, "subscriptions": [subscription, subscription]}
    return SessionRecord({"user": f"auth.user:{number}"}, 1.7e9, data)


def _cpu(client: redis.Redis, call: Callable[[], object]) -> float:
    """Return the CPU time, in microseconds, that Redis uses while a function runs."""
    before = _used(client)
    call()
    return (_used(client) - before) * 1e6


def _used(client: redis.Redis) -> float:
    info: Any = client.info("cpu")
    return float(info["used_cpu_user"] + info["used_cpu_sys"])


def _memory(client: redis.Redis) -> float:
    """Return the memory of Redis's data, in KiB."""
    info: Any = client.info("memory")
    return float(info["used_memory_dataset"]) / 1024


class _Listeners:
    """Connections that subscribe to one channel of Redis and read what they receive, in one thread.

    Args:
        url: the URL of the Redis server.
        channel: the name of the channel.
    """

    def __init__(self, url: str, channel: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._channel = channel
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._connections: list[Any] = [self._client.pubsub() for _ in range(LISTENERS)]  # type: ignore[no-untyped-call]

    def __enter__(self) -> None:
        for connection in self._connections:
            connection.subscribe(self._channel)
            while connection.get_message(timeout=1) is None:
                pass
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()
        for connection in self._connections:
            connection.close()
        self._client.close()

    def _read(self) -> None:
        while not self._ended.is_set():
            for connection in self._connections:
                connection.get_message(timeout=0.001)
