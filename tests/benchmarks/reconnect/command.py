"""Kills and restarts a server, so that all clients reconnect at once: `python -m tests.benchmarks reconnect`.

All clients have missed the same number of messages. Until they have caught up, the server may use as much CPU time as
for the same number of new connections, plus `FLOORS` times the floor (one `send()`, see ../fanout/floor.py) for each
delivery. All of this is measured in the same run. See Protocol: Restore.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.fanout.lines import LineProcess
from tests.benchmarks.fanout.process import usage
from tests.benchmarks.fanout.servers import FLOOR, SUBJECTS, Running, Subject, running
from tests.benchmarks.stage import stage
from tests.support.server import ROOT

#: The maximum cost of a delivery, in multiples of the floor.
FLOORS = 1.5
#: The bytes of padding in each message.
PADDING = 200
#: The number of clients of another stream that stay connected.
BYSTANDERS = 50
#: The number of broadcasts to these clients per second.
RATE = 20
#: How many connections to open before a measurement.
WARM = 50
NAMES = ("reliable_cable, uvicorn with frames", "reliable_cable, daphne")


@dataclass(frozen=True)
class Storm:
    """The clients that reconnect.

    Args:
        connections: the number of clients.
        streams: the number of streams. Each client is subscribed to one of them.
        messages: how many messages each client has missed.
        signed_in: whether the clients are logged in with a Django session.
    """

    connections: int
    streams: int
    messages: int
    signed_in: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--connections", type=int, default=2000, help="clients that reconnect (2000)")
    parser.add_argument("--messages", type=int, default=50, help="messages that each client missed (50)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 20], help="numbers of streams (1 20)")
    parser.add_argument("--only", action="append", default=[], help="measure only servers with this text in their name")
    parser.add_argument("--signed-in", action="store_true", help="the clients are logged in")
    parser.add_argument("--output", type=Path, help="file for the results (JSON)")


def run(options: argparse.Namespace) -> int:
    """Measure the servers, and print the results.

    Return 1 if the bound is exceeded, if messages are missing or out of order, or if a client was rejected; else 0.
    """
    names = [name for name in NAMES if not options.only or any(word in name for word in options.only)]
    subjects = [subject for subject in SUBJECTS if subject.name in names]
    results: list[dict[str, Any]] = []
    with stage(with_floor=True) as resources:
        for subject in subjects:
            for streams in options.streams:
                resources.redis.cli("FLUSHALL")
                storm = Storm(options.connections, streams, options.messages, options.signed_in)
                results.append(_measure(subject, storm, resources.environment, resources.folder))
                sys.stdout.write(_line(results[-1]) + "\n")
                sys.stdout.flush()
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(result["kept"] for result in results) else 1


def _process(module: str, environment: Mapping[str, str]) -> LineProcess:
    return LineProcess([sys.executable, "-m", f"tests.benchmarks.{module}"], environment, ROOT)


def _measure(subject: Subject, storm: Storm, environment: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Measure a server, and return the results."""
    streams = [f"bench{number}" for number in range(storm.streams)]
    log = folder / "server.log"
    floor = _floor(storm, environment, folder)
    with (
        _process("fanout.publisher", environment) as publisher,
        _process("fanout.publisher", environment) as other,
        _process("reconnect.clients", environment) as clients,
        _process("reconnect.clients", environment) as bystanders,
        ThreadPoolExecutor(1) as pool,
    ):
        cookie = publisher.ask("sign_in")["cookie"] if storm.signed_in else ""
        with running(subject, environment, log) as server:
            bystanders.ask("connect", url=server.url, streams=["warm"], count=WARM, cookie=cookie)
            before = usage(server.pid)
            clients.ask("connect", url=server.url, streams=streams, count=storm.connections, cookie=cookie)
            time.sleep(0.5)  # meanwhile, the server writes the sessions
            connect = (usage(server.pid) - before).cpu / storm.connections
            publisher.ask("publish", messages=storm.streams, first=0, rate=0, streams=storm.streams, size=PADDING)
            clients.ask("reach", offset=1)
            time.sleep(0.5)
        clients.ask("disconnect")
        missed = storm.streams * storm.messages
        publisher.ask("publish", messages=missed, first=1, rate=0, streams=storm.streams, size=PADDING)
        with running(subject, environment, log) as server:
            bystanders.ask("connect", url=server.url, streams=["aside0"], count=BYSTANDERS, cookie=cookie)
            messages = RATE * 60
            broadcasts = {"messages": messages, "first": 0, "rate": RATE, "streams": 1, "size": PADDING}
            pool.submit(other.ask, "publish", prefix="aside", **broadcasts)
            time.sleep(1)
            bystanders.ask("latencies")
            memory, before = _memory(server), usage(server.pid)
            counts = clients.ask("reconnect", url=server.url, offset=1 + storm.messages, cookie=cookie)
            aside = bystanders.ask("latencies")
            time.sleep(0.5)
            cpu = (usage(server.pid) - before).cpu
            after = _memory(server)
            other.end()
    deliveries = storm.connections * storm.messages
    bound = storm.connections * connect + deliveries * FLOORS * floor
    return {
        "name": subject.name,
        **asdict(storm),
        **counts,
        "connect_us": connect * 1e6,
        "floor_us": floor * 1e6,
        "cpu_s": cpu,
        "bound_s": bound,
        "ratio": cpu / bound,
        "peak_mib": after["VmHWM"] / 1024,
        "before_mib": memory["VmRSS"] / 1024,
        "after_mib": after["VmRSS"] / 1024,
        "bystanders": aside,
        "kept": cpu <= bound and not counts["disordered"] and not counts["rejected"],
    }


def _floor(storm: Storm, environment: Mapping[str, str], folder: Path) -> float:
    """Return the CPU time of one `send()` in seconds, measured with one socket for each client that reconnects."""
    rounds = 50
    data = json.dumps({"n": 0, "ts": time.time_ns(), "pad": "x" * PADDING})
    body = json.dumps({"stream": "bench0", "data": data}).encode()
    with (
        running(FLOOR, environment, folder / "floor.log") as server,
        _process("reconnect.clients", environment) as load,
    ):
        load.ask("connect", url=server.url, streams=["bench0"], count=storm.connections)
        for _ in range(rounds):
            request = urllib.request.Request(f"{server.http}/_broadcast?way=floor", body)  # noqa: S310 - loopback
            urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        load.ask("reach", offset=rounds)
        with urllib.request.urlopen(f"{server.http}/floor", timeout=10) as response:  # noqa: S310
            return float(json.load(response)["seconds"]) / rounds / storm.connections


def _memory(server: Running) -> dict[str, float]:
    """Return the memory of a server and its peak, in KiB."""
    text = Path(f"/proc/{server.pid}/status").read_text()
    return {name: float(re.findall(rf"{name}:\s+(\d+) kB", text)[0]) for name in ("VmRSS", "VmHWM")}


def _line(result: Mapping[str, Any]) -> str:
    aside = result["bystanders"]
    return "\n".join(
        [
            f"{result['name']}: {result['connections']} clients of {result['streams']} streams, "
            f"{result['messages']} messages each: {result['restored']} restored, {result['rejected']} rejected, "
            f"{result['disordered']} out of order, {result['again']} retries, {result['seconds']:.1f} s",
            f"  CPU {result['cpu_s']:.2f} s, {result['ratio']:.2f} of the bound {result['bound_s']:.2f} s "
            f"(connect {result['connect_us']:.0f} µs, floor {result['floor_us']:.1f} µs)",
            f"  memory {result['before_mib']:.0f} MiB before, {result['peak_mib']:.0f} at the peak, "
            f"{result['after_mib']:.0f} after",
            f"  bystanders: {aside['count']} deliveries, p50 {aside.get('p50_ms', 0):.0f} ms, "
            f"p99 {aside.get('p99_ms', 0):.0f} ms, at most {aside.get('max_ms', 0):.0f} ms",
            "  ok" if result["kept"] else "  FAILED: bound exceeded, or history out of order or rejected",
        ]
    )
