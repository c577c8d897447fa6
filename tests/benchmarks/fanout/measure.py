"""Measures servers one after the other: the cost of connections, and the cost of each way of broadcasting.

The floor (one `send()` for each socket, see floor.py) is measured before and after everything that is compared with it,
for the same number of sockets, in a process that keeps running. So other work on the machine affects both.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from .lines import LineProcess
from .load import clients
from .process import memory, usage
from .servers import FLOOR, OTHER, Running, Subject, Way, running

#: How many connections to open before a measurement, because the first ones cost more.
WARM = 50

Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The amount of work in measurements.

    Args:
        connections: the number of subscribers of one stream.
        rounds: the number of rounds. Their median is the result.
        seconds: how long, in seconds, to make paced broadcasts.
        burst: the number of broadcasts without pauses.
        idle: how long, in seconds, to measure connections that receive only pings.
        signed_in: the number of connections with a Django session.
        small_streams: the number of streams with two subscribers and one broadcast per second each.
        size: bytes of JSON in each message, besides its number and time.
        crowd: the number of subscribers of a stream that is busy while the delivery of another stream is measured.
    """

    connections: int = 1000
    rounds: int = 3
    seconds: float = 2
    burst: int = 100
    idle: float = 4
    signed_in: int = 300
    small_streams: int = 500
    size: int = 200
    crowd: int = 10_000


QUICK = Plan(rounds=1, seconds=1.5, burst=60, idle=3, signed_in=100, small_streams=250, crowd=10_000)


class Bench:
    """Measures servers, one after the other.

    Args:
        plan: the amount of work.
        program: the path of the load client.
        folder: the folder for logs.
        environment: the environment variables of servers.
        new_publisher: starts a process that broadcasts.
        publisher: a running process that broadcasts.
    """

    def __init__(
        self,
        plan: Plan,
        program: Path,
        folder: Path,
        environment: Mapping[str, str],
        new_publisher: Callable[[], LineProcess],
        publisher: LineProcess,
    ) -> None:
        self.plan = plan
        self._new_publisher = new_publisher
        self._program = program
        self._folder = folder
        self._environment = environment
        self._publisher = publisher
        self._first = 0
        self._cookie = publisher.ask("sign_in")["cookie"]
        self._floor: _Target | None = None

    @contextlib.contextmanager
    def over_floor(self) -> Iterator[None]:
        """During the block, run the server that measures the floor, with connected clients."""
        with running(FLOOR, self._environment, self._folder / "floor.log") as server, self._clients(server) as load:
            load.ask("connect", count=self.plan.connections)
            self._floor = _Target(FLOOR, server, load)
            yield

    def measure(self, subject: Subject) -> Result:
        """Measure a server, and return the results."""
        result: Result = {"name": subject.name, "server": subject.kind, "ways": []}
        log = self._folder / "server.log"
        with running(subject, self._environment, log) as server:
            memory_before = memory(server.pid)
            with self._clients(server, identifier=subject.identifier, compress=subject.compress) as load:
                result |= self._connections(server, load)
                result["ways"] = self._ways(_Target(subject, server, load))
                load.ask("close")
            if subject.signed_in:
                with self._clients(server) as load:
                    load.ask("connect", count=WARM, cookie=self._cookie)
                    _wait_until_idle(server)
                    result["connect_signed_in_us"] = self._connect(server, load, self.plan.signed_in, self._cookie)
                    load.ask("close")
            if subject.small_streams:
                result["small_streams"] = self._small_streams(subject, server)
                result["crowd"] = self._beside_a_crowd(server, memory_before)
        return result

    def _clients(self, server: Running, **options: Any) -> LineProcess:
        return clients(self._program, server.url, **options)

    # -- connections --------------------------------------------------------------------------------------------------

    def _connect(self, server: Running, load: LineProcess, count: int, cookie: str = "") -> float:
        """Connect and subscribe clients, and return the CPU time for each, in µs."""
        before = usage(server.pid)
        load.ask("connect", count=count, cookie=cookie)
        return (usage(server.pid) - before).cpu / count * 1e6

    def _connections(self, server: Running, load: LineProcess) -> Result:
        load.ask("connect", count=WARM)
        _wait_until_idle(server)
        count = self.plan.connections - WARM
        memory_before = memory(server.pid)
        connect = self._connect(server, load, count)
        _wait_until_idle(server)
        before = usage(server.pid)
        time.sleep(self.plan.idle)
        idle = (usage(server.pid) - before).cpu
        return {
            "connect_us": connect,
            "memory_kib": (memory(server.pid) - memory_before) / count,
            "idle_us": idle / self.plan.idle / self.plan.connections * 1e6,
        }

    # -- broadcasts ---------------------------------------------------------------------------------------------------

    def _ways(self, target: _Target) -> list[Result]:
        """Return the cost of each way of broadcasting: the median of rounds, each between two rounds of the floor."""
        subject, plan = target.subject, self.plan
        kinds = {"paced": (subject.rate, max(round(subject.rate * plan.seconds), 4))}
        if subject.back_to_back:
            kinds["back_to_back"] = (0, plan.burst)
        rounds_by_way: dict[tuple[str, str], list[Result]] = {}
        for _ in range(plan.rounds if subject.ways else 0):
            for kind, (rate, messages) in kinds.items():
                assert self._floor is not None
                floor_rate, floor_messages = (rate, messages) if rate in (0, 20) else (20, round(20 * plan.seconds))
                before = self._round(self._floor, FLOOR.ways[0], floor_rate, floor_messages)
                costs = [self._round(target, way, rate, messages) for way in subject.ways]
                after = self._round(self._floor, FLOOR.ways[0], floor_rate, floor_messages)
                for way, one in zip(subject.ways, costs, strict=True):
                    one["floor_us"] = (before["floor_us"] + after["floor_us"]) / 2
                    one["floor_process_us"] = (before["us"] + after["us"]) / 2
                    one["ratio"] = one["us"] / one["floor_us"]
                    rounds_by_way.setdefault((way.name, kind), []).append(one)
        results: list[Result] = []
        for way in subject.ways:
            result: Result = {"name": way.name}
            for kind in kinds:
                rounds = rounds_by_way[way.name, kind]
                result[kind] = {key: median(one[key] for one in rounds) for key in rounds[0]}
                for key in ("lost", "disordered", "posts_failed"):
                    result[kind][key] = sum(one[key] for one in rounds)
            results.append(result)
        return results

    def _round(self, target: _Target, way: Way, rate: float, messages: int) -> Result:
        """Broadcast to all clients of one stream, and return the cost."""
        plan = self.plan
        first, self._first = self._first, self._first + messages
        before, floor_before = usage(target.server.pid), target.floor_seconds(way)
        if way is OTHER:
            target.load.ask("expect")
            self._publisher.ask("publish", messages=messages, first=first, rate=rate, streams=1, size=plan.size)
            counts = target.load.ask("await", messages=messages, first=first)
        else:
            options = {"post": target.server.http + (way.path or ""), "key": way.key, "size": plan.size}
            counts = target.load.ask("post", messages=messages, first=first, rate=rate, **options)
        spent = usage(target.server.pid) - before
        delivered = max(counts["delivered"], 1)
        return {
            "us": spent.cpu / delivered * 1e6,
            "floor_us": (target.floor_seconds(way) - floor_before) / delivered * 1e6,
            "kernel_share": spent.kernel_share,
            "lost": counts["expected"] - counts["delivered"],
            "disordered": counts["disordered"],
            "posts_failed": counts.get("posts_failed", 0),
            "frame_bytes": counts["frame_bytes"],
            "wire_bytes": counts["wire_bytes"],
            **{name: counts[name] for name in ("p50_ms", "p99_ms", "max_ms")},
        }

    def _small_streams(self, subject: Subject, server: Running) -> Result:
        """Broadcast from another process to many streams with two subscribers each, for four seconds."""
        streams = self.plan.small_streams
        messages = streams * 4
        with self._clients(server, streams=streams) as load:
            load.ask("connect", count=2 * streams)
            _wait_until_idle(server)
            before = usage(server.pid)
            load.ask("expect")
            options = {"rate": streams, "streams": streams}
            took = self._publisher.ask("publish", messages=messages, first=0, size=self.plan.size, **options)
            counts = load.ask("await", messages=messages)
            spent = usage(server.pid) - before
            load.ask("close")
        return {
            "streams": streams,
            "rate": messages / took["seconds"],
            "us": spent.cpu / max(counts["delivered"], 1) * 1e6,
            "lost": counts["expected"] - counts["delivered"],
            **{name: counts[name] for name in ("p50_ms", "p99_ms", "max_ms", "disordered")},
        }

    def _beside_a_crowd(self, server: Running, memory_before: float) -> Result:
        """Broadcast to a crowd and to a few subscribers of another stream at the same time, from other processes."""
        crowd, few = self.plan.crowd, 10
        crowds, others = {"messages": 10, "rate": 2, "streams": 1}, {"messages": 250, "rate": 50, "streams": 1}
        with (
            self._clients(server, yielding=True) as many,
            self._clients(server, identifier='{"channel":"BenchChannel","stream":"beside%d"}') as load,
            self._new_publisher() as second,
            ThreadPoolExecutor(1) as pool,
        ):
            many.ask("connect", count=crowd)
            load.ask("connect", count=few)
            _wait_until_idle(server)
            kib = (memory(server.pid) - memory_before) / (crowd + few)
            many.ask("expect")
            load.ask("expect")
            published = pool.submit(second.ask, "publish", first=0, size=self.plan.size, **crowds)
            self._publisher.ask("publish", first=0, size=self.plan.size, prefix="beside", **others)
            published.result()
            counts, theirs = load.ask("await", **others), many.ask("await", **crowds)
            many.ask("close")
            load.ask("close")
        return {
            "connections": crowd,
            "memory_kib": kib,
            "crowd_ms": theirs["max_ms"],
            "lost": counts["expected"] + theirs["expected"] - counts["delivered"] - theirs["delivered"],
            "disordered": counts["disordered"] + theirs["disordered"],
            **{name: counts[name] for name in ("p50_ms", "p99_ms", "max_ms")},
        }


def _wait_until_idle(server: Running) -> None:
    """Wait until a server only sends pings, because connecting and disconnecting clients cause work for a while."""
    for _ in range(20):
        before = usage(server.pid)
        time.sleep(0.5)
        if (usage(server.pid) - before).cpu < 0.05:
            return


@dataclass(frozen=True)
class _Target:
    """A running server and its connected clients."""

    subject: Subject
    server: Running
    load: LineProcess

    def floor_seconds(self, way: Way) -> float:
        """Return the CPU time of all calls of `send()` of the floor, in seconds; 0 for other ways of broadcasting."""
        if way not in FLOOR.ways:
            return 0.0
        with urllib.request.urlopen(self.server.http + "/floor", timeout=10) as response:  # noqa: S310 - loopback
            return float(json.load(response)["seconds"])
