"""Measures what a broadcast costs Redis. Commands and bytes must not grow with the number of subscribers."""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import sync_to_async

from reliable_cable import broadcast
from reliable_cable.conf import get_settings
from reliable_cable.connection.account import Account
from reliable_cable.connection.outbox import Outbox
from reliable_cable.consumer import get_hub
from tests.support.redis import RedisServer
from tests.support.subscriber import LoneSubscriber

BROADCASTS = 100


async def measure(server: RedisServer, counts: tuple[int, ...] = (1, 1000)) -> dict[int, dict[str, float]]:
    """Return what one broadcast costs Redis, by the number of subscribers of its stream.

    Args:
        server: the Redis server. No other process may use it.
        counts: the numbers of subscribers to measure.
    """
    assert get_settings().redis_url == server.url
    costs: dict[int, dict[str, float]] = {}
    for count in counts:
        stream = f"bench-{count}"
        missing = BROADCASTS * count
        complete = asyncio.Event()

        async def send(message: dict[str, Any], complete: asyncio.Event = complete) -> None:
            nonlocal missing
            missing -= 1
            if missing == 0:
                complete.set()

        hub = get_hub()
        outboxes = [Outbox(send, account=Account(1 << 20), overflow=lambda: None) for _ in range(count)]
        subscribers = [LoneSubscriber(outbox, "I", stream, frozenset(), lambda: None) for outbox in outboxes]
        for subscriber in subscribers:
            await subscriber.join(hub, stream)
            subscriber.resume()
        before = await asyncio.to_thread(_counters, server)
        for number in range(BROADCASTS):
            await sync_to_async(broadcast)(stream, {"n": number + 1})
        async with asyncio.timeout(30):
            await complete.wait()
        after = await asyncio.to_thread(_counters, server)
        for subscriber in subscribers:
            subscriber.leave(hub)
        costs[count] = {name: (after[name] - before[name]) / BROADCASTS for name in after}
    return costs


def _counters(server: RedisServer) -> dict[str, int]:
    stats = server.cli("INFO", "stats")
    return {
        "commands": int(stats["total_commands_processed"]),
        "bytes in": int(stats["total_net_input_bytes"]),
        "bytes out": int(stats["total_net_output_bytes"]),
    }
