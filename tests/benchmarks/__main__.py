"""`python -m tests.benchmarks broadcast`: what a broadcast costs who makes it; `… fanout`: what it costs a server.

`… reconnect`: what it costs a server that all clients come back at once. `… incoming`: what a client's message costs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import django

#: `broadcast()` may cost this many times the bare script, and a group message must cost this many times `broadcast()`.
MOST_OF_BARE, LEAST_OF_GROUP = 2.5, 15


def run_broadcast() -> int:
    """Measure broadcasting with a Redis of its own, and print a table; return 1 if a bound is not kept."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
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


def main() -> int:
    """Run a benchmark; return the exit code."""
    from tests.benchmarks import incoming
    from tests.benchmarks.fanout import command
    from tests.benchmarks.reconnect import command as reconnect

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    choices = parser.add_subparsers(dest="benchmark", required=True)
    choices.add_parser("broadcast", help="what broadcast() costs, against the bare script and a channel layer's group")
    command.add_arguments(choices.add_parser("fanout", help="CPU per delivery, memory and CPU per connection"))
    reconnect.add_arguments(choices.add_parser("reconnect", help="all clients come back at once after a restart"))
    incoming.add_arguments(choices.add_parser("incoming", help="CPU per message from a client"))
    options = parser.parse_args()
    if options.benchmark == "broadcast":
        return run_broadcast()
    modules: Mapping[str, Any] = {"fanout": command, "reconnect": reconnect, "incoming": incoming}
    return int(modules[options.benchmark].run(options))


if __name__ == "__main__":
    sys.exit(main())
