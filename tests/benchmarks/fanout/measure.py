"""One server after the other: what a connection costs it, and each way of broadcasting, in turns with the floor.

The floor is measured before and after everything that is compared with it, over as many sockets of a process that runs
all the time; a ratio is that of neighbours. So what else the machine does meanwhile counts for both.
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

#: Connections before a server is measured: what its first ones cost is no matter of their number.
WARM = 50

Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        connections: of one stream.
        rounds: of which the median counts.
        seconds: that paced broadcasts take.
        burst: broadcasts back to back.
        idle: seconds after connecting, in which pings go on.
        signed_in: connections with a session.
        small_streams: how many there are; with two subscribers each, and as many broadcasts a second.
        size: bytes of JSON in each message besides its number and time.
        crowd: subscribers of one stream, beside which others are to have theirs in time.
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
        plan: how much.
        program: the load client.
        folder: for logs.
        environment: of servers.
        new_publisher: starts another process that broadcasts.
        publisher: one that runs.
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
        """Have the floor's server and its clients for as long as the block."""
        with running(FLOOR, self._environment, self._folder / "floor.log") as server, self._clients(server) as load:
            load.ask("connect", count=self.plan.connections)
            self._floor = _Target(FLOOR, server, load)
            yield

    def measure(self, subject: Subject) -> Result:
        """Return what a server costs."""
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
                    _settle(server)
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
        """Connect and subscribe, and return the µs of CPU for each."""
        before = usage(server.pid)
        load.ask("connect", count=count, cookie=cookie)
        return (usage(server.pid) - before).cpu / count * 1e6

    def _connections(self, server: Running, load: LineProcess) -> Result:
        load.ask("connect", count=WARM)
        _settle(server)
        count = self.plan.connections - WARM
        memory_before = memory(server.pid)
        connect = self._connect(server, load, count)
        _settle(server)
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
        """Return what each way of broadcasting costs: the median of rounds that take turns with the floor."""
        subject, plan = target.subject, self.plan
        kinds = {"paced": (subject.rate, max(round(subject.rate * plan.seconds), 4))}
        if subject.back_to_back:
            kinds["back_to_back"] = (0, plan.burst)
        found: dict[tuple[str, str], list[Result]] = {}
        for _ in range(plan.rounds if subject.ways else 0):
            for kind, (rate, messages) in kinds.items():
                assert self._floor is not None
                floor_rate, floor_messages = (rate, messages) if rate in (0, 20) else (20, round(20 * plan.seconds))
                before = self._round(self._floor, FLOOR.ways[0], floor_rate, floor_messages)
                ones = [self._round(target, way, rate, messages) for way in subject.ways]
                after = self._round(self._floor, FLOOR.ways[0], floor_rate, floor_messages)
                for way, one in zip(subject.ways, ones, strict=True):
                    one["floor_us"] = (before["floor_us"] + after["floor_us"]) / 2
                    one["floor_process_us"] = (before["us"] + after["us"]) / 2
                    one["ratio"] = one["us"] / one["floor_us"]
                    found.setdefault((way.name, kind), []).append(one)
        results: list[Result] = []
        for way in subject.ways:
            result: Result = {"name": way.name}
            for kind in kinds:
                rounds = found[way.name, kind]
                result[kind] = {key: median(one[key] for one in rounds) for key in rounds[0]}
                for key in ("lost", "disordered", "posts_failed"):
                    result[kind][key] = sum(one[key] for one in rounds)
            results.append(result)
        return results

    def _round(self, target: _Target, way: Way, rate: float, messages: int) -> Result:
        """Broadcast to all clients of one stream, and return what that cost."""
        plan = self.plan
        first, self._first = self._first, self._first + messages
        before, floor_before = usage(target.server.pid), target.floor_seconds(way)
        if way is OTHER:
            target.load.ask("expect")
            self._publisher.ask("publish", messages=messages, first=first, rate=rate, streams=1, size=plan.size)
            seen = target.load.ask("await", messages=messages, first=first)
        else:
            options = {"post": target.server.http + (way.path or ""), "key": way.key, "size": plan.size}
            seen = target.load.ask("post", messages=messages, first=first, rate=rate, **options)
        spent = usage(target.server.pid) - before
        delivered = max(seen["delivered"], 1)
        return {
            "us": spent.cpu / delivered * 1e6,
            "floor_us": (target.floor_seconds(way) - floor_before) / delivered * 1e6,
            "kernel_share": spent.kernel_share,
            "lost": seen["expected"] - seen["delivered"],
            "disordered": seen["disordered"],
            "posts_failed": seen.get("posts_failed", 0),
            "frame_bytes": seen["frame_bytes"],
            "wire_bytes": seen["wire_bytes"],
            **{name: seen[name] for name in ("p50_ms", "p99_ms", "max_ms")},
        }

    def _small_streams(self, subject: Subject, server: Running) -> Result:
        """Broadcast to many streams of two subscribers each, from another process, for four seconds."""
        streams = self.plan.small_streams
        messages = streams * 4
        with self._clients(server, streams=streams) as load:
            load.ask("connect", count=2 * streams)
            _settle(server)
            before = usage(server.pid)
            load.ask("expect")
            options = {"rate": streams, "streams": streams}
            took = self._publisher.ask("publish", messages=messages, first=0, size=self.plan.size, **options)
            seen = load.ask("await", messages=messages)
            spent = usage(server.pid) - before
            load.ask("close")
        return {
            "streams": streams,
            "rate": messages / took["seconds"],
            "us": spent.cpu / max(seen["delivered"], 1) * 1e6,
            "lost": seen["expected"] - seen["delivered"],
            **{name: seen[name] for name in ("p50_ms", "p99_ms", "max_ms", "disordered")},
        }

    def _beside_a_crowd(self, server: Running, memory_before: float) -> Result:
        """Broadcast to a crowd, and meanwhile to a few subscribers of another stream, from another process."""
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
            _settle(server)
            kib = (memory(server.pid) - memory_before) / (crowd + few)
            many.ask("expect")
            load.ask("expect")
            published = pool.submit(second.ask, "publish", first=0, size=self.plan.size, **crowds)
            self._publisher.ask("publish", first=0, size=self.plan.size, prefix="beside", **others)
            published.result()
            seen, theirs = load.ask("await", **others), many.ask("await", **crowds)
            many.ask("close")
            load.ask("close")
        return {
            "connections": crowd,
            "memory_kib": kib,
            "crowd_ms": theirs["max_ms"],
            "lost": seen["expected"] + theirs["expected"] - seen["delivered"] - theirs["delivered"],
            "disordered": seen["disordered"] + theirs["disordered"],
            **{name: seen[name] for name in ("p50_ms", "p99_ms", "max_ms")},
        }


def _settle(server: Running) -> None:
    """Wait until a server does nothing but ping: clients that left and came make work for a while."""
    for _ in range(20):
        before = usage(server.pid)
        time.sleep(0.5)
        if (usage(server.pid) - before).cpu < 0.05:
            return


@dataclass(frozen=True)
class _Target:
    """A server that runs, with its clients connected."""

    subject: Subject
    server: Running
    load: LineProcess

    def floor_seconds(self, way: Way) -> float:
        """Return the CPU seconds that the C loop has taken, if this is the floor."""
        if way not in FLOOR.ways:
            return 0.0
        with urllib.request.urlopen(self.server.http + "/floor", timeout=10) as response:  # noqa: S310 - loopback
            return float(json.load(response)["seconds"])
