"""`python -m tests.benchmarks`: starts a Redis of its own, measures, prints a table; fails if a bound is not kept."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

#: `broadcast()` may cost this many times the bare script, and a group message must cost this many times `broadcast()`.
MOST_OF_BARE, LEAST_OF_GROUP = 2.5, 15


def main() -> int:
    """Run the benchmarks of broadcasting; return the exit code."""
    from django.conf import settings

    from tests.support.redis import RedisServer

    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder) / "redis", options={"appendonly": "no"}) as server,
    ):
        settings.RELIABLE_CABLE = {"REDIS_URL": server.url}
        django.setup()
        from tests.benchmarks import broadcast, subscribers

        times = broadcast.measure(server.url)
        ours, bare = times["broadcast()"], times["bare EVALSHA"]
        sys.stdout.write(f"{server.binary.name}\n")
        for name, value in times.items():
            sys.stdout.write(f"{name:36} {value:8.1f} µs {value / ours:8.2f} x\n")
        grown = asyncio.run(subscribers.measure(server))
        for count, costs in grown.items():
            text = ", ".join(f"{value:.1f} {name}" for name, value in costs.items())
            sys.stdout.write(f"{count:5} subscribers: {text} per broadcast\n")
        group = times["group_send, channels_redis.core"]
        kept = {
            f"broadcast() at most {MOST_OF_BARE} times the bare script": ours <= MOST_OF_BARE * bare,
            f"group_send at least {LEAST_OF_GROUP} times broadcast()": group >= LEAST_OF_GROUP * ours,
            "no more commands for more subscribers": len({round(costs["commands"]) for costs in grown.values()}) == 1,
        }
        for what, is_kept in kept.items():
            sys.stdout.write(f"{'kept' if is_kept else 'NOT KEPT'}: {what}\n")
        return 0 if all(kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
