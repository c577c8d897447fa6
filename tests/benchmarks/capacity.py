"""Computes the number of server processes and Redis servers, and the bandwidth, that a number of connections needs.

The costs are those that `fanout` and `redis` have measured and saved. `docs/scaling.md` explains the model, and has the
table that this module prints.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

RESULTS: Final = Path(__file__).parent / "results"
#: The server in `fanout.json` whose costs are used.
SERVER: Final = "reliable_cable, uvicorn with frames"
#: The share of a core that servers and Redis use on average. The rest is for peaks and for clients that reconnect.
TARGET: Final = 0.5
#: The maximum number of connections of a server process. With more, a garbage collection would take over 0.5 s.
MAX_CONNECTIONS: Final = 5000
SIZES: Final = (10_000, 1_000_000, 10_000_000)


@dataclass(frozen=True)
class Costs:
    """The measured costs. Unless another unit is given, they are CPU times in microseconds.

    Args:
        connect: a server's cost of connecting a client, authenticating it by a Django session, and subscribing it.
        idle: a server's cost of the pings of an idle connection in one second.
        delivery: a server's cost of sending a message to one subscriber.
        message: a server's cost of receiving a message from Redis, besides the cost of its deliveries.
        connection_kib: the memory of a subscribed connection, in KiB.
        wire_bytes: the size of a delivered message with its frame, in bytes.
        broadcast: the cost of storing a message, for Redis.
        announcement: the cost of sending a stored message to one server process, for Redis.
        session_write: the cost of writing a session record, for Redis.
        open_stream: the cost of reading the position of a stream, for Redis.
        session_kib: the memory of a session record in Redis, in KiB.
        stream_kib: the memory of a stream with one message in Redis, in KiB.
    """

    connect: float
    idle: float
    delivery: float
    message: float
    connection_kib: float
    wire_bytes: float
    broadcast: float
    announcement: float
    session_write: float
    open_stream: float
    session_kib: float
    stream_kib: float

    @classmethod
    def load(cls, folder: Path = RESULTS) -> Self:
        """Return the costs in `fanout.json` and `redis.json`."""
        results = json.loads((folder / "fanout.json").read_text())["results"]
        server: Mapping[str, Any] = next(each for each in results if each["name"] == SERVER)
        paced = server["ways"][0]["paced"]
        redis = json.loads((folder / "redis.json").read_text())
        # Each message of this measurement has two subscribers.
        message = 2 * (server["small_streams"]["us"] - paced["us"])
        return cls(
            connect=server["connect_signed_in_us"],
            idle=server["idle_us"],
            delivery=paced["us"],
            message=message,
            connection_kib=server["crowd"]["memory_kib"],
            wire_bytes=paced["wire_bytes"],
            broadcast=redis["broadcast_us"],
            announcement=redis["announcement_us"],
            session_write=redis["session_write_us"],
            open_stream=redis["open_stream_us"],
            session_kib=redis["session_kib"],
            stream_kib=redis["stream_kib"],
        )


@dataclass(frozen=True)
class Workload:
    """The activity of clients. Each connection subscribes to one shared stream, and to one stream of its own.

    Args:
        connections: the number of connections.
        group: the number of subscribers of a shared stream, such as the members of a chat.
        shared_rate: the number of messages to each shared stream in a second.
        own_rate: the number of messages to each stream with one subscriber in a second, such as notifications.
        duration: how long a connection is open, in seconds.
        together: whether a proxy connects all subscribers of a shared stream to the same server process.
    """

    connections: int
    group: int = 50
    shared_rate: float = 0.1
    own_rate: float = 1 / 60
    duration: float = 600
    together: bool = False


@dataclass(frozen=True)
class Need:
    """The servers, memory and bandwidth that a workload needs.

    Args:
        processes: the number of server processes, with one core each.
        memory_gib: the memory of all connections, in GiB.
        deliveries: the number of messages that clients receive in a second.
        receives: the number of messages that server processes receive from Redis in a second.
        redis: the number of Redis servers, with one core each.
        redis_gib: the memory of sessions and streams in Redis, in GiB. Each stream has one message.
        out_gbit: what the servers send to clients, in Gbit/s.
        redis_gbit: what Redis sends to the servers, in Gbit/s.
        largest: the work that takes most of the servers' CPU time, and its share of this time.
    """

    processes: int
    memory_gib: float
    deliveries: float
    receives: float
    redis: int
    redis_gib: float
    out_gbit: float
    redis_gbit: float
    largest: tuple[str, float]


def needs(work: Workload, costs: Costs) -> Need:
    """Return the servers, memory and bandwidth that a workload needs.

    The number of processes depends on how many of them receive each message, which depends on the number of processes.
    So this number is increased until it suffices.
    """
    shared = work.connections / work.group * work.shared_rate
    own = work.connections * work.own_rate
    deliveries = work.connections * (work.shared_rate + work.own_rate)
    connects = work.connections / work.duration
    processes = math.ceil(work.connections / MAX_CONNECTIONS)
    while True:
        receives = shared * (1 if work.together else _processes_of(work.group, processes)) + own
        parts = {
            "connects": connects * costs.connect,
            "pings": work.connections * costs.idle,
            "deliveries": deliveries * costs.delivery,
            "messages from Redis": receives * costs.message,
        }
        needed = math.ceil(sum(parts.values()) / 1e6 / TARGET)
        if needed <= processes:
            break
        processes = needed
    redis = (shared + own) * costs.broadcast + receives * costs.announcement
    # A connection writes its record after the welcome and after its subscriptions.
    redis += connects * 2 * (costs.session_write + costs.open_stream)
    streams = work.connections * (1 + 1 / work.group)
    name = max(parts, key=lambda part: parts[part])
    return Need(
        processes=processes,
        memory_gib=work.connections * costs.connection_kib / 2**20,
        deliveries=deliveries,
        receives=receives,
        redis=math.ceil(redis / 1e6 / TARGET),
        redis_gib=(work.connections * costs.session_kib + streams * costs.stream_kib) / 2**20,
        out_gbit=deliveries * costs.wire_bytes * 8 / 1e9,
        redis_gbit=receives * costs.wire_bytes * 8 / 1e9,
        largest=(name, parts[name] / sum(parts.values())),
    )


def _processes_of(group: int, processes: int) -> float:
    """Return the mean number of processes in which a stream has subscribers, if each subscriber is in a random one."""
    return processes * (1 - (1 - 1 / processes) ** group)


def table(work: Workload, costs: Costs, sizes: Sequence[int] = SIZES) -> str:
    """Return a table in Markdown with the needs for several numbers of connections."""
    found = {size: needs(replace(work, connections=size), costs) for size in sizes}
    rows: list[tuple[str, Callable[[Need], str]]] = [
        ("server processes", lambda need: f"{need.processes:,}"),
        ("memory of connections", lambda need: f"{need.memory_gib:,.1f} GiB"),
        ("deliveries a second", lambda need: f"{need.deliveries:,.0f}"),
        ("messages from Redis a second", lambda need: f"{need.receives:,.0f}"),
        ("Redis servers", lambda need: f"{need.redis:,}"),
        ("memory of Redis", lambda need: f"{need.redis_gib:,.1f} GiB"),
        ("to clients", lambda need: f"{need.out_gbit:,.2f} Gbit/s"),
        ("from Redis to servers", lambda need: f"{need.redis_gbit:,.2f} Gbit/s"),
        ("most of the servers' CPU time", lambda need: f"{need.largest[0]} ({need.largest[1]:.0%})"),
    ]
    lines = ["| connections | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(show(need) for need in found.values()) + " |" for name, show in rows]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    default = Workload(0)
    parser.add_argument("--connections", type=int, action="append", help="may be repeated; default: three sizes")
    parser.add_argument("--group", type=int, default=default.group, help="subscribers of a shared stream")
    parser.add_argument("--shared-rate", type=float, default=default.shared_rate, help="messages to it in a second")
    parser.add_argument("--own-rate", type=float, default=default.own_rate, help="messages to a stream of one client")
    parser.add_argument("--duration", type=float, default=default.duration, help="seconds that a connection is open")
    parser.add_argument("--together", action="store_true", help="a shared stream's subscribers share a process")


def run(options: argparse.Namespace) -> int:
    """Print the table. Return 0."""
    work = Workload(0, options.group, options.shared_rate, options.own_rate, options.duration, options.together)
    sys.stdout.write(table(work, Costs.load(), options.connections or SIZES) + "\n")
    return 0
