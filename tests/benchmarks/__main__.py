"""The benchmarks, `python -m tests.benchmarks NAME`.

- `broadcast`: what `broadcast()` costs its caller
- `steps`: what `broadcast()` costs its caller on each engine
- `fanout`: what a broadcast costs a server for each subscriber, and what each connection costs
- `reconnect`: what it costs a server that all clients reconnect at the same time
- `incoming`: what a message from a client costs a server
- `posts`: what a broadcast over HTTP costs a server
- `events`: what a broadcast costs a server for each reader of server-sent events
- `logins`: what the regular checks of Django logins cost a server
- `presence`: what the members of streams cost a server, in each store
- `postgres`: how long a broadcast takes to reach the clients of another process, with PostgreSQL alone
- `runs`: what a token costs the process that writes a run
- `redis`: what a broadcast, a session and a stream cost Redis
- `capacity`: how many servers a number of connections needs, computed from the results of `fanout` and `redis`
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import django

from tests.support.redis import RedisServer

#: The maximum cost of `broadcast()`, in multiples of the cost of a direct call of its Lua script.
MAX_RATIO_TO_SCRIPT = 2.5
#: The minimum cost of a message to a group of a channel layer, in multiples of the cost of `broadcast()`.
MIN_RATIO_OF_GROUP = 15


@contextmanager
def _project_with_redis() -> Iterator[RedisServer]:
    """Start a new Redis server, and set up Django so that the package uses it."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    from django.conf import settings

    with (
        tempfile.TemporaryDirectory() as folder,
        RedisServer(Path(folder) / "redis", options={"appendonly": "no"}) as server,
    ):
        settings.RELIABLE_CABLE = {"REDIS_URL": server.url}
        django.setup()
        yield server


def run_broadcast() -> int:
    """Measure `broadcast()` with a new Redis server, and print a table. Return 1 if a bound is violated, else 0."""
    with _project_with_redis() as server:
        from tests.benchmarks import broadcast, subscribers

        times = broadcast.measure(server.url)
        ours, bare = times["broadcast()"], times["bare EVALSHA"]
        sys.stdout.write(f"{server.binary.name}\n")
        for name, value in times.items():
            sys.stdout.write(f"{name:36} {value:8.1f} µs {value / ours:8.2f} x\n")
        by_subscribers = asyncio.run(subscribers.measure(server))
        for count, costs in by_subscribers.items():
            text = ", ".join(f"{value:.1f} {name}" for name, value in costs.items())
            sys.stdout.write(f"{count:5} subscribers: {text} per broadcast\n")
        group = times["group_send, channels_redis.core"]
        commands = {round(costs["commands"]) for costs in by_subscribers.values()}
        bounds = {
            f"broadcast() at most {MAX_RATIO_TO_SCRIPT} times the bare script": ours <= MAX_RATIO_TO_SCRIPT * bare,
            f"group_send at least {MIN_RATIO_OF_GROUP} times broadcast()": group >= MIN_RATIO_OF_GROUP * ours,
            "equally many commands for one subscriber and for 1000": len(commands) == 1,
        }
        for bound, is_kept in bounds.items():
            sys.stdout.write(f"{'kept' if is_kept else 'NOT KEPT'}: {bound}\n")
        return 0 if all(bounds.values()) else 1


def run_logins() -> int:
    """Measure the checks of logins with a new SQLite file, and print a table."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from tests.benchmarks import logins

    with tempfile.TemporaryDirectory() as folder:
        return logins.run(Path(folder))


def run_redis() -> int:
    """Measure the costs of Redis with a new Redis server, and print and save them."""
    with _project_with_redis() as server:
        from tests.benchmarks import redis_costs

        return redis_costs.run(server)


def run_steps() -> int:
    """Measure `broadcast()` on each engine, with new servers, and print a table."""
    from tests.benchmarks import steps

    with tempfile.TemporaryDirectory() as folder:
        return steps.run(Path(folder))


def run_presence() -> int:
    """Measure presence with a new Redis, SQLite file and PostgreSQL, and print a table."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from tests.benchmarks import presence

    with tempfile.TemporaryDirectory() as folder:
        return presence.run(Path(folder))


def run_runs() -> int:
    """Measure the cost of tokens with a new Redis server and a new SQLite file, and print a table."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    from tests.benchmarks import runs

    with tempfile.TemporaryDirectory() as folder:
        return runs.run(Path(folder))


def main() -> int:
    """Run the benchmark that the command line names, and return the exit code."""
    from tests.benchmarks import capacity, events, incoming, postgres, posts
    from tests.benchmarks.fanout import command
    from tests.benchmarks.reconnect import command as reconnect

    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    choices = parser.add_subparsers(dest="benchmark", required=True)
    choices.add_parser("broadcast", help="cost of broadcast(), compared with the bare script and channel layers")
    choices.add_parser("steps", help="cost of broadcast() on each engine")
    command.add_arguments(choices.add_parser("fanout", help="CPU per delivery, memory and CPU per connection"))
    reconnect.add_arguments(choices.add_parser("reconnect", help="cost when all clients reconnect after a restart"))
    incoming.add_arguments(choices.add_parser("incoming", help="CPU per message from a client"))
    posts.add_arguments(choices.add_parser("posts", help="CPU per broadcast over HTTP: Django view and CableHTTP"))
    events.add_arguments(choices.add_parser("events", help="CPU per delivery to readers of server-sent events"))
    postgres.add_arguments(choices.add_parser("postgres", help="delivery to another process with PostgreSQL alone"))
    choices.add_parser("logins", help="CPU and memory of the regular checks of Django logins")
    choices.add_parser("presence", help="CPU and statements of 1000 members in 50 streams")
    choices.add_parser("runs", help="CPU per token of an answer that a task writes")
    choices.add_parser("redis", help="CPU and memory of Redis for a broadcast, a session and a stream")
    capacity.add_arguments(choices.add_parser("capacity", help="servers for a number of connections, computed"))
    options = parser.parse_args()
    commands = {
        "broadcast": run_broadcast,
        "steps": run_steps,
        "logins": run_logins,
        "runs": run_runs,
        "redis": run_redis,
        "presence": run_presence,
    }
    if options.benchmark in commands:
        return commands[options.benchmark]()
    modules: Mapping[str, Any] = {
        "fanout": command,
        "reconnect": reconnect,
        "incoming": incoming,
        "posts": posts,
        "events": events,
        "postgres": postgres,
        "capacity": capacity,
    }
    return int(modules[options.benchmark].run(options))


if __name__ == "__main__":
    sys.exit(main())
