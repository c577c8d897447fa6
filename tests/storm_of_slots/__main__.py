"""A longer check than the tests: writers and a listener on a Redis Cluster whose slots are moved and whose nodes fail.

Run it by hand: `python -m tests.storm_of_slots --seconds 60 --seed 1`. With `--only move`, no node fails. It exits with
1 if a guarantee was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

from reliable_cable.conf import CableSettings  # noqa: E402 - after django.setup()
from reliable_cable.stores.redis.keys import key_slot  # noqa: E402
from reliable_cable.stores.streams.base import Message, Transient  # noqa: E402
from reliable_cable.stores.streams.redis import RedisStreamStore  # noqa: E402
from tests.stores.conftest import until  # noqa: E402
from tests.stores.writers import Writer, check_history  # noqa: E402
from tests.support.redis_cluster import RedisCluster  # noqa: E402

#: The kinds of changes, from which the next one is chosen at random. Moves are the most frequent.
KINDS = ["move"] * 6 + ["failover", "kill"]
STREAMS = [f"s{number}" for number in range(12)]


async def storm(cluster: RedisCluster, seconds: float, chosen: random.Random, kinds: list[str]) -> None:
    """Write to all streams while slots move and primaries fail, and check the histories."""
    stores = [RedisStreamStore(CableSettings(redis_url=cluster.url, history_size=1_000_000)) for _ in range(3)]
    writers = [Writer(stores[number % 3], stream) for number, stream in enumerate(STREAMS)]
    tasks = [asyncio.create_task(writer.run()) for writer in writers]
    heard: set[str] = set()
    listener = stores[0].listen(lambda event: heard.add(event.stream) if isinstance(event, Transient) else None)
    await listener.subscribe_many(STREAMS)
    done: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        slot = key_slot(stores[0].keys(chosen.choice(STREAMS))[0])
        kind = chosen.choice(kinds)
        if kind != "move":
            # A replica would not take over a slot if it did not know yet that its primary owns the slot.
            await asyncio.to_thread(cluster.wait_for_agreement)
        primary = await asyncio.to_thread(cluster.owner, slot)
        if kind == "move":
            await asyncio.to_thread(cluster.move, slot, cluster.other(primary))
        elif kind == "failover":
            await asyncio.to_thread(cluster.fail_over, primary)
        else:
            await asyncio.to_thread(cluster.replace, primary)
        done[kind] += 1
        if kind != "move":
            await asyncio.to_thread(cluster.wait_until_whole)
        await asyncio.sleep(0.2)
    seen = [len(writer.stored) for writer in writers]
    await until(lambda: all(len(writer.stored) > count + 5 for writer, count in zip(writers, seen, strict=True)))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for writer, stream in zip(writers, STREAMS, strict=True):
        await check_history(stores[0], stream, writer)
    # Check that the subscriptions have followed their slots: only they deliver whispers. A whisper may be lost.
    async with asyncio.timeout(30):
        while len(heard) < len(STREAMS):
            for stream in STREAMS:
                await stores[1].awhisper(stream, Message("1"))
            await asyncio.sleep(0.2)
    await listener.close()
    stored = sum(len(writer.stored) for writer in writers)
    failed = sum(len(writer.failed) for writer in writers)
    uncertain = sum(len(writer.uncertain) for writer in writers)
    epochs = sum(len(writer.epochs) for writer in writers)
    found = (
        f"{stored} messages stored, {failed} refused, {uncertain} uncertain, {epochs} epochs of {len(STREAMS)} streams"
    )
    sys.stdout.write(f"{dict(done)}: {found}\n")
    if not done.keys() - {"move"}:
        assert epochs == len(STREAMS), "a move has begun an epoch"
    for store in stores:
        await store.aclose()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=sorted(set(KINDS)))
    options = parser.parse_args()
    kinds = [options.only] if options.only else KINDS
    with (
        tempfile.TemporaryDirectory() as folder,
        RedisCluster(Path(folder), replicas=1, node_timeout=2.0) as cluster,
    ):
        try:
            asyncio.run(storm(cluster, options.seconds, random.Random(options.seed), kinds))
        except AssertionError as error:
            sys.exit(f"A promise was broken: {error}")


if __name__ == "__main__":
    main()
